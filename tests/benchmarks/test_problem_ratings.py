"""One user's ratings as a task: on made-up files, and counts on the real ones."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from benchmarks.__main__ import default_data
from benchmarks.problems import models, ratings
from benchmarks.problems.data_files import MissingDataError
from benchmarks.problems.ratings import SOURCES, read

USERS, ITEMS = 30, 120


@pytest.fixture
def made_up(tmp_path):
    """A folder with a small movielens_1m.npz; user u rated the first 4 (u + 1) items."""
    pairs = [(u, i) for u in range(USERS) for i in range(min(4 * (u + 1), ITEMS))]
    user, item = np.array(pairs).T
    rating = (1 + (7 * user + 3 * item) % 5).astype(np.uint8)
    np.savez(tmp_path / "movielens_1m.npz", user=user + 1, item=item, rating=rating)
    return tmp_path


def real(name):
    try:
        return ratings.load(name, default_data())
    except MissingDataError as error:
        pytest.skip(f"the real ratings are not here: {error}")


def test_users_below_the_threshold_are_left_out(made_up):
    assert ratings.load("movielens-1m", made_up).users == 28
    assert ratings.load("movielens-1m", made_up, at_least=20).users == 26
    loaded = ratings.load("movielens-1m", made_up)
    assert loaded.scores.shape == (28, 100)
    assert len(loaded.with_at_least(50)) == 18


def test_ties_are_broken_by_the_lower_item_number(made_up):
    table = read("movielens-1m", made_up)
    counts = np.bincount(table.item)
    assert (np.diff(counts) <= 0).all()  # so the first 100 items are the most rated
    scores = ratings.load("movielens-1m", made_up).scores
    assert scores[0, :13].isnan().tolist() == [False] * 12 + [True]


def test_a_task_is_a_split_of_one_users_ratings(made_up):
    loaded = ratings.load("movielens-1m", made_up)
    task = ratings.task(loaded, user=10, seed=0)
    assert task.train.x.shape == (10, 100)
    assert task.validation.y.shape == (15, 1)
    for batch in task:
        assert batch.x.sum(1).tolist() == [1] * len(batch.x)
        items = batch.x.argmax(1)
        scores = batch.y[:, 0] * loaded.std + loaded.mean
        torch.testing.assert_close(scores, loaded.scores[10, items])
    items = torch.cat([batch.x.argmax(1) for batch in task])
    assert len(items.unique()) == 25


def test_ratings_are_standardised_over_all_users(made_up):
    loaded = ratings.load("movielens-1m", made_up)
    known = loaded.scores[~loaded.scores.isnan()]
    assert loaded.mean == pytest.approx(known.numpy().mean())
    assert loaded.std == pytest.approx(known.numpy().std())


def test_splits_depend_on_the_seed_alone(made_up):
    loaded = ratings.load("movielens-1m", made_up)
    first, again, other = (ratings.task(loaded, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.train.x, other.train.x)


def test_too_few_ratings_are_refused(made_up):
    loaded = ratings.load("movielens-1m", made_up)
    with pytest.raises(ValueError, match="user 0 has 12 ratings"):
        ratings.task(loaded, user=0, seed=0)


def test_the_csv_form(tmp_path):
    lines = ["userId,movieId,rating,timestamp", "1,31,2.5,9", "1,1029,3.0,9", "2,31,0.5,9"]
    path = tmp_path / SOURCES["movielens-small-2016"].file
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    table = read("movielens-small-2016", tmp_path)
    assert table.user.tolist() == [1, 1, 2]
    assert table.item.tolist() == [31, 1029, 31]
    assert table.rating.tolist() == [2.5, 3.0, 0.5]


def test_the_jester_form(tmp_path):
    matrix = np.array([[-995, 9900], [9900, 1000]], dtype=np.int16)
    np.savez(tmp_path / SOURCES["jester-1"].file, ratings=matrix)
    table = read("jester-1", tmp_path)
    assert list(zip(table.user, table.item, table.rating, strict=True)) == [
        (0, 0, -9.95),
        (1, 1, 10.0),
    ]


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_missing_file_is_named_with_its_origin(name, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        ratings.load(name, tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    assert SOURCES[name].file in str(caught.value)
    assert "https://" in str(caught.value)


def test_the_network_is_the_papers():
    assert models.count(ratings.MODEL.init(0)) == 5721


@pytest.mark.parametrize(
    ("name", "ten", "twenty", "fifty"),
    [("movielens-small-2016", 489, 338, 88), ("movielens-1m", 4985, 3500, 1212)],
)
def test_counts_on_the_real_movielens(name, ten, twenty, fifty):
    loaded = real(name)
    assert loaded.users == ten
    assert ratings.load(name, default_data(), at_least=20).users == twenty
    assert len(loaded.with_at_least(50)) == fifty


def test_counts_on_the_real_jester():
    loaded = real("jester-1")
    assert loaded.users == 24983
    assert len(loaded.with_at_least(50)) == 19640
    known = loaded.scores[~loaded.scores.isnan()]
    assert (len(known), known.min().item(), known.max().item()) == (1810455, -9.95, 10.0)
