"""How ratings are divided for meta-learning, and the baselines."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import default_data
from benchmarks.collaborative_filtering.cells import LITERAL
from benchmarks.problems import ratings
from benchmarks.problems.data_files import MissingDataError
from benchmarks.problems.ratings import (
    ITEM_RIDGE,
    ITEMS,
    USER_RIDGE,
    MetaTest,
    Rated,
    RatingPool,
    Ratings,
    RatingTasks,
)

CPU = torch.device("cpu")


def divided(users=60, shots=10, validation=15, tests=10, seed=0):
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
    again = RatingTasks(Ratings(changed, 0.0, 1.0), 10, 15, 10)
    torch.testing.assert_close(
        again.train_scores(), tasks.train_scores(), rtol=0, atol=0, equal_nan=True
    )


def test_training_tasks_have_different_ratings_and_are_divided_anew():
    tasks = divided()
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
    tasks = divided()
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
    tasks = RatingTasks(Ratings(scores, 3.0, 1.0), shots=5, validation=5, tests=7)
    assert not {0, 1} & set(tasks.test_users.tolist())
    test = tasks.test()
    few = torch.isin(tasks.test_users, torch.tensor([2, 3, 4]))
    assert few.any()
    assert torch.equal(test.evaluated(), ~few)
    error = test.held_out.error(torch.zeros_like(test.held_out.y))
    assert torch.equal(error.isnan(), few)
    with pytest.raises(ValueError, match="9 users have 5 ratings"):
        RatingTasks(Ratings(scores, 3.0, 1.0), shots=5, validation=5, tests=10)
    with pytest.raises(ValueError, match="0 others"):
        RatingTasks(Ratings(scores, 3.0, 1.0), shots=5, validation=40, tests=2)


def test_padding_does_not_count():
    x, y = torch.zeros(1, 4, ITEMS), torch.tensor([[[1.0], [2.0], [0.0], [0.0]]])
    rated = Rated(x, y, torch.tensor([[True, True, False, False]]))
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
        return Rated(one_hot[items].unsqueeze(0), targets, torch.ones(1, len(items)).bool())

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


def real(name, least, shots, validation):
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
        tasks = real(name, least, *sizes)
        assert len(tasks.train_users) == expected
        test = tasks.test()
        assert 90 <= int(test.evaluated().sum()) <= 100
        scores = ratings.baseline_errors(tasks.train_scores(), test)
        means = {key: e[test.evaluated()].mean().item() for key, e in scores.items()}
        assert 0.7 < means["biases"] < min(means["item"], means["user"]) < means["global"] < 1.05
