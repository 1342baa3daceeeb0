"""One user's ratings as a task: files, tasks and baselines, on made-up ratings and real ones."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import check_data
from benchmarks.__main__ import default_data
from benchmarks.check_data import EXPECTED, Expected, compare
from benchmarks.collaborative_filtering import LITERAL
from benchmarks.problems import models, ratings
from benchmarks.problems.data_files import MissingDataError
from benchmarks.problems.ratings import (
    BASELINES,
    ITEM_RIDGE,
    ITEMS,
    SOURCES,
    USER_RIDGE,
    MetaTest,
    RatingBatch,
    RatingPool,
    Ratings,
    RatingTasks,
    Table,
    read,
)

USERS, FILMS = 30, 120


@pytest.fixture
def made_up(tmp_path):
    """A folder with a small movielens_1m.npz; user u rated the first 4 (u + 1) items."""
    pairs = [(u, i) for u in range(USERS) for i in range(min(4 * (u + 1), FILMS))]
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
    assert len(ratings.load("movielens-1m", made_up).scores) == 28
    assert len(ratings.load("movielens-1m", made_up, at_least=20).scores) == 26
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
    assert len(loaded.scores) == ten
    assert len(ratings.load(name, default_data(), at_least=20).scores) == twenty
    assert len(loaded.with_at_least(50)) == fifty


def test_counts_on_the_real_jester():
    loaded = real("jester-1")
    assert len(loaded.scores) == 24983
    assert len(loaded.with_at_least(50)) == 19640
    known = loaded.scores[~loaded.scores.isnan()]
    assert (len(known), known.min().item(), known.max().item()) == (1810455, -9.95, 10.0)


@pytest.fixture(scope="module")
def divided():
    return RatingTasks(ratings.made_up(users=80), 10, 15, tests=20)


def test_padding_is_zero_and_last_and_no_longer_than_needed(divided):
    held_out = divided.test().held_out
    assert bool((held_out.y[~held_out.known] == 0).all())
    assert bool((held_out.known.sort(1, descending=True).values == held_out.known).all())
    assert bool(held_out.known.any(0).all())


def test_the_error_of_several_predictions_at_once():
    y = torch.tensor([[[1.0], [-2.0]], [[3.0], [0.0]]])
    rated = RatingBatch(torch.zeros(2, 2, 100), y, torch.tensor([[True, True], [True, False]]))
    found = rated.error(torch.stack([y, torch.zeros_like(y)]))
    assert found.tolist() == [[0, 0], pytest.approx([2.5**0.5, 3.0])]


def test_nobody_may_have_ratings_left():
    scores = torch.full((3, 100), torch.nan, dtype=torch.float64)
    scores[:, :5] = torch.arange(5, dtype=torch.float64)
    tasks = RatingTasks(Ratings(scores), shots=5, validation=0, tests=2)
    assert tasks.test().held_out.x.shape == (2, 1, 100)
    assert not tasks.test().evaluated().any()


def test_baselines_do_not_look_at_held_out_ratings(divided):
    train, test = divided.train_scores(), divided.test()
    hidden = test._replace(held_out=test.held_out._replace(y=torch.zeros_like(test.held_out.y)))
    one, two = (ratings.baseline_predictions(train, t) for t in (test, hidden))
    assert all(torch.equal(one[name], two[name]) for name in BASELINES)


def table():
    """Every one of 4 users rated all of 30 items, and what is to be expected of that."""
    user, item = (axis.ravel() for axis in np.mgrid[1:5, 1:31])
    expected = Expected("", (4, 30, 120), (1.0, 5.0), 30, (4, 4), "", spread=(24,) * 5)
    return Table(user, item, 1.0 + (user + item) % 5), expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (5, 30, 120)}, "users, items and ratings: 4, 30, 120, expected 5, 30, 120"),
        ({"scores": (0.5, 5.0)}, "lowest and highest rating: 1.0, 5.0, expected 0.5, 5.0"),
        ({"fewest": 31}, "fewest ratings of a user: 30, expected 31"),
        ({"tasks": (4, 3)}, "20, ratings of the 100 most rated items: 4, 4, expected 4, 3"),
        ({"spread": (25, 23, 24, 24, 24)}, "ratings of each value: 24, 24, 24, 24, 24, expected"),
    ],
)
def test_each_difference_from_what_is_known_is_named(change, message):
    found, expected = table()
    (wrong,) = compare(found, replace(expected, **change))
    assert message in wrong


def test_a_file_packed_anew_is_as_expected_but_not_the_same(tmp_path, monkeypatch):
    found, expected = table()
    columns = zip(found.user, found.item, found.rating.astype(int), strict=True)
    content = "".join(f"{u}\t{i}\t{r}\t9\n" for u, i, r in columns).encode()
    (tmp_path / SOURCES["movielens-100k"].file).write_bytes(gzip.compress(content))
    known = replace(expected, unpacked=check_data._digest(content))
    monkeypatch.setitem(EXPECTED, "movielens-100k", known)
    finding = check_data.check("movielens-100k", tmp_path)
    assert (finding.present, finding.wrong, finding.same_file) == (True, (), False)
    result = CliRunner().invoke(check_data.app, ["--data", str(tmp_path)])
    assert result.exit_code == 0
    assert "there and as expected" in result.stdout
    assert "not, byte for byte, the one" in result.stdout


def test_every_source_has_its_expectations():
    assert EXPECTED.keys() == SOURCES.keys()
    for expected in EXPECTED.values():
        assert not expected.spread or sum(expected.spread) == expected.counts[2]


CPU = torch.device("cpu")


def divide(users=60, shots=10, validation=15, tests=10, seed=0):
    return RatingTasks(ratings.made_up(users, seed), shots, validation, tests, seed)


@given(st.integers(0, 50), st.sampled_from([(5, 5), (10, 15), (20, 30)]))
def test_nobody_is_in_training_and_in_the_test(seed, sizes):
    table = ratings.made_up(60, seed)
    tasks = RatingTasks(table, *sizes, tests=10, seed=seed)
    assert not set(tasks.train_users.tolist()) & set(tasks.test_users.tolist())
    assert len(set(tasks.test_users.tolist())) == 10
    counts = (~table.scores.isnan()).sum(1)
    assert counts[tasks.test_users].min() >= sizes[0]
    enough = {user for user in range(60) if counts[user] >= sum(sizes)}
    assert set(tasks.train_users.tolist()) == enough - set(tasks.test_users.tolist())


@given(st.integers(0, 50))
def test_what_is_adapted_to_and_what_is_held_out_are_all_ratings_and_none_twice(seed):
    table = ratings.made_up(60, seed)
    tasks = RatingTasks(table, 10, 15, 10, seed)
    support, held_out = tasks.test()
    assert support.known.all()
    assert support.x.shape == (10, 10, ITEMS)
    for row, user in enumerate(tasks.test_users.tolist()):
        found = {}
        for part in (support, held_out):
            items = part.x[row].argmax(-1)[part.known[row]].tolist()
            assert not set(items) & set(found)
            y = part.y[row, part.known[row], 0] * tasks.std + tasks.mean
            found |= dict(zip(items, y.tolist(), strict=True))
        rated = torch.nonzero(~table.scores[user].isnan()).flatten().tolist()
        assert sorted(found) == rated
        assert list(found.values()) == pytest.approx(table.scores[user, list(found)].tolist())


def test_the_units_are_those_of_the_training_users_alone():
    table = ratings.made_up()
    tasks = RatingTasks(table, 10, 15, 10)
    own = table.scores[tasks.train_users]
    own = own[~own.isnan()]
    assert tasks.mean == pytest.approx(own.mean().item())
    assert tasks.std == pytest.approx(own.std(correction=0).item())
    changed = table.scores.clone()
    changed[tasks.test_users] += 7
    again = RatingTasks(Ratings(changed), 10, 15, 10)
    torch.testing.assert_close(
        again.train_scores(), tasks.train_scores(), rtol=0, atol=0, equal_nan=True
    )


def test_training_tasks_have_different_ratings_and_are_divided_anew():
    tasks = divide()
    first, again, other = (tasks.train_batch([0, 3], update) for update in (1, 1, 2))
    assert first.train.x.shape == (2, 10, ITEMS)
    assert first.validation.y.shape == (2, 15, 1)
    items = torch.cat([batch.x.argmax(-1) for batch in first], 1)
    assert all(len(row.unique()) == 25 for row in items)
    for row, user in enumerate(tasks.train_users[[0, 3]].tolist()):
        y = torch.cat([batch.y[row, :, 0] for batch in first]) * tasks.std + tasks.mean
        torch.testing.assert_close(y, ratings.made_up().scores[user, items[row]])
    assert torch.equal(first.train.x, again.train.x)
    assert not torch.equal(first.train.x, other.train.x)


def test_meta_batches_depend_on_the_update_and_the_seed_alone():
    tasks = divide()
    pool, same, other = (RatingPool(tasks, 5, seed, CPU, torch.float32) for seed in (0, 0, 1))
    assert torch.equal(pool(7).train.x, same(7).train.x)
    assert pool(7).train.x.dtype == torch.float32
    assert pool(7).names != other(7).names
    epoch = [name for update in range(len(tasks.train_users) // 5) for name in pool(update).names]
    assert len(set(epoch)) == len(epoch)


def test_a_user_without_enough_ratings_is_replaced_and_one_with_none_left_is_counted():
    scores = torch.full((11, ITEMS), torch.nan, dtype=torch.float64)
    for user, count in enumerate([3, 3, 5, 5, 5, 40, 40, 40, 40, 40, 40]):
        scores[user, :count] = torch.linspace(1, 5, count, dtype=torch.float64)
    tasks = RatingTasks(Ratings(scores), shots=5, validation=5, tests=7)
    assert not {0, 1} & set(tasks.test_users.tolist())
    test = tasks.test()
    few = torch.isin(tasks.test_users, torch.tensor([2, 3, 4]))
    assert few.any()
    assert torch.equal(test.evaluated(), ~few)
    error = test.held_out.error(torch.zeros_like(test.held_out.y))
    assert torch.equal(error.isnan(), few)
    with pytest.raises(ValueError, match="9 users have 5 ratings"):
        RatingTasks(Ratings(scores), shots=5, validation=5, tests=10)
    with pytest.raises(ValueError, match="0 others"):
        RatingTasks(Ratings(scores), shots=5, validation=40, tests=2)


def test_padding_does_not_count():
    x, y = torch.zeros(1, 4, ITEMS), torch.tensor([[[1.0], [2.0], [0.0], [0.0]]])
    rated = RatingBatch(x, y, torch.tensor([[True, True, False, False]]))
    prediction = torch.tensor([[[0.0], [0.0], [50.0], [-9.0]]])
    assert rated.error(prediction).tolist() == pytest.approx([math.sqrt(2.5)])


def hand_made():
    """Three training users and a test user; items 0 and 1 adapted to, items 0 to 2 held out."""
    train = torch.full((3, ITEMS), torch.nan, dtype=torch.float64)
    train[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    train[1, :2] = torch.tensor([-1.0, 0.5])
    train[2, 1:4] = torch.tensor([0.0, -2.0, 1.0])
    one_hot = torch.eye(ITEMS, dtype=torch.float64)

    def rated(items, y):
        targets = torch.tensor(y, dtype=torch.float64).reshape(1, -1, 1)
        return RatingBatch(one_hot[items].unsqueeze(0), targets, torch.ones(1, len(items)).bool())

    return train, MetaTest(rated([0, 1], [1.0, 3.0]), rated([2, 3, 50], [0.0, 1.0, 2.0]))


def ridge_biases(train):
    """User and item biases by solving the normal equations."""
    pairs = torch.nonzero(~train.isnan())
    design = torch.zeros(len(pairs), len(train) + ITEMS, dtype=torch.float64)
    for row, (user, item) in enumerate(pairs.tolist()):
        design[row, user] = design[row, len(train) + item] = 1
    ridge = torch.tensor([USER_RIDGE] * len(train) + [ITEM_RIDGE] * ITEMS, dtype=torch.float64)
    y = train[pairs[:, 0], pairs[:, 1]]
    return torch.linalg.solve(design.T @ design + ridge.diag(), design.T @ y)[len(train) :]


def test_baselines_against_a_computation_by_hand():
    train, test = hand_made()
    found = {name: p[0, :, 0].tolist() for name, p in (
        ratings.baseline_predictions(train, test).items()
    )}  # fmt: skip
    assert found["global"] == [0, 0, 0]
    assert found["item"] == pytest.approx([0.5, 1.0, 0.0])
    assert found["user"] == pytest.approx([4 / (2 + USER_RIDGE)] * 3)
    bias = ridge_biases(train)
    user = (4 - bias[0] - bias[1]) / (2 + USER_RIDGE)
    assert found["biases"] == pytest.approx((bias[[2, 3, 50]] + user).tolist(), rel=1e-9)
    errors = ratings.baseline_errors(train, test)
    assert set(errors) == set(ratings.BASELINES)
    assert errors["global"].item() == pytest.approx(math.sqrt(5 / 3))
    assert errors["item"].item() == pytest.approx(math.sqrt((0.25 + 0 + 4) / 3))


def real_tasks(name, least, shots, validation):
    try:
        return RatingTasks(ratings.load(name, default_data(), least), shots, validation)
    except MissingDataError as error:
        pytest.skip(f"the real ratings are not here: {error}")


@pytest.mark.parametrize(
    ("name", "least", "ten", "twenty"),
    [
        ("movielens-small-2016", 10, 218, 68),
        (*LITERAL, 396, 187),
        ("movielens-1m", 10, 2888, 1180),
        ("jester-1", 10, 24883, 19562),
    ],
)
def test_the_settings_of_the_tables_on_the_real_ratings(name, least, ten, twenty):
    for sizes, expected in (((10, 15), ten), ((20, 30), twenty)):
        tasks = real_tasks(name, least, *sizes)
        assert len(tasks.train_users) == expected
        test = tasks.test()
        assert 90 <= int(test.evaluated().sum()) <= 100
        scores = ratings.baseline_errors(tasks.train_scores(), test)
        means = {key: e[test.evaluated()].mean().item() for key, e in scores.items()}
        assert 0.7 < means["biases"] < min(means["item"], means["user"]) < means["global"] < 1.05
