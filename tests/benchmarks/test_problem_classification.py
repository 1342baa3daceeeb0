"""Classification problems: splits, wrong labels, Omniglot's drawings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.problems import classification, models, picture_data
from benchmarks.problems.data_files import MissingDataError
from benchmarks.problems.tasks import join, take


@given(share=st.floats(0, 1), kind=st.sampled_from(["uniform", "next"]), seed=st.integers(0, 99))
def test_so_many_labels_are_wrong_as_asked_for(share, kind, seed):
    y = torch.arange(70) % 10
    found = classification.corrupt(y, share, kind, 10, seed)
    assert torch.equal(found.wrong, found.y != y)
    assert int(found.wrong.sum()) == round(share * 70)
    assert int(found.y.min()) >= 0
    assert int(found.y.max()) <= 9
    if kind == "next":
        assert torch.equal(found.y[found.wrong], (y[found.wrong] + 1) % 10)


def test_wrong_labels_of_the_uniform_kind_are_all_others():
    y = torch.zeros(5000, dtype=torch.int64)
    found = classification.corrupt(y, 1.0, "uniform", 10, 0)
    counts = torch.bincount(found.y, minlength=10)
    assert counts[0] == 0
    assert int(counts[1:].min()) > 450
    with pytest.raises(ValueError, match="unknown kind 'other'"):
        classification.corrupt(y, 0.5, "other", 10, 0)


def test_the_parts_of_digits_share_no_images():
    split = classification.split_digits(100, 50, seed=1)
    assert [len(part.y) for part in split] == [100, 50, 597]
    rows = torch.cat([split.train.x, split.validation.x])
    assert rows.shape == (150, 64)
    whole = classification.images().x.flatten(1)[:1200]
    where = [(whole == row).all(1).nonzero()[0].item() for row in rows]
    assert len(set(where)) == 150
    with pytest.raises(ValueError, match="of 1200"):
        classification.split_digits(1200, 1, seed=0)


def test_losses_and_accuracy():
    model = models.mlp([64, 8, 10])
    params, part = model.init(0), classification.split_digits(20, 0, 0).train
    losses = classification.example_losses(model, params, part)
    assert losses.shape == (20,)
    assert classification.mean_loss(model)(params, part) == losses.mean()
    right = part.y.clone()
    guessed = model.apply(params, part.x).argmax(-1)
    expected = (right == guessed).double().mean()
    assert classification.accuracy(model, params, part) == expected
    both = join([part, take(part, right == 3)])
    assert len(both.y) == 20 + int((right == 3).sum())


def test_drawings_of_a_character_are_shared_out(tmp_path):
    images = np.zeros((3, 20, 28, 28), np.uint8)
    images += np.arange(20, dtype=np.uint8)[None, :, None, None]
    np.savez(tmp_path / picture_data.OMNIGLOT_FILE, images=images)
    split = picture_data.omniglot_split(tmp_path, characters=2, train=12, validation=4, seed=0)
    assert [len(part.y) for part in split] == [24, 8, 8]
    assert split.train.x.shape == (24, picture_data.OMNIGLOT_PIXELS)
    assert split.test.y.tolist() == [0] * 4 + [1] * 4
    drawers = torch.cat([part.x[: len(part.y) // 2, 0] for part in split])
    assert len(set(drawers.tolist())) == 20
    assert drawers.min() > 0.9  # paper is 0 and ink 1: these pictures are nearly black
    with pytest.raises(MissingDataError, match="Omniglot"):
        picture_data.omniglot_split(tmp_path / "none", 2, 12, 4, 0)
