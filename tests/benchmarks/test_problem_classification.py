"""Digits: few-class tasks, splits and wrong labels; Omniglot's drawings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.problems import classification, models, picture_data
from benchmarks.problems.data_files import MissingDataError
from benchmarks.problems.tasks import join, move, take


def rows(batch):
    return {tuple(row) for row in batch.x.flatten(1).tolist()}


def test_all_images():
    data = classification.images()
    assert data.x.shape == (1797, 1, 8, 8)
    assert data.x.dtype == torch.float64
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert data.y.unique().tolist() == list(range(10))


@pytest.mark.parametrize("seed", range(5))
def test_a_task_is_balanced_and_its_batches_are_disjoint(seed):
    task = classification.task(seed, ways=4, shots=6)
    for batch in task:
        assert batch.x.shape == (24, 1, 8, 8)
        assert torch.bincount(batch.y).tolist() == [6] * 4
    assert len(rows(task.train) | rows(task.validation)) == 48


def test_labels_name_the_same_digit_in_both_batches():
    task = classification.task(11)
    everything = dict(
        zip(
            map(tuple, classification.images().x.flatten(1).tolist()),
            classification.images().y.tolist(),
            strict=True,
        )
    )
    names = [set(), set(), set(), set(), set()]
    for batch in task:
        for row, label in zip(batch.x.flatten(1).tolist(), batch.y.tolist(), strict=True):
            names[label].add(everything[tuple(row)])
    assert all(len(name) == 1 for name in names)
    assert len(set.union(*names)) == 5


def test_different_seeds_draw_different_classes_and_all_of_them():
    firsts = {
        classification.images()
        .y[(classification.images().x == classification.task(s, shots=1).train.x[0]).all((1, 2, 3))]
        .item()
        for s in range(60)
    }
    assert firsts == set(range(10))


def test_stacked_tasks_are_the_single_ones():
    stacked = classification.tasks(3, ways=3, shots=2)
    assert stacked.train.x.shape == (3, 6, 1, 8, 8)
    assert stacked.validation.y.shape == (3, 6)
    torch.testing.assert_close(stacked.validation.x[2], classification.task(2, 3, 2).validation.x)


def test_flat_images_for_the_perceptron():
    assert classification.flatten(classification.task(0, 5, 2)).train.x.shape == (10, 64)
    assert classification.flatten(classification.tasks(3, shots=2)).validation.x.shape == (
        3,
        10,
        64,
    )


def test_labels_stay_integers():
    task = move(classification.task(0), torch.device("cpu"), torch.float32)
    assert task.train.x.dtype == torch.float32
    assert task.train.y.dtype == torch.int64


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
    others = classification.images().x.flatten(1)[1200:]
    assert torch.equal(split.test.x, others)
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
