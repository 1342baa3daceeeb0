"""Collaborative filtering as few-shot tasks: one user's ratings are one task.

"Meta-Learning with Adjoint Methods" (section 5.3) takes the 100 most rated items and the users
who rated at least 20 of them. Its task counts, 489 and 4985, come out exactly with at least 10
instead, on the 2016 release of MovieLens latest-small and on MovieLens-1M. That reading is the
default here; the other, on the classic MovieLens-100K, is `at_least=20`.

It says: 100 users for the test, the others for meta-learning; a sampled task with too few ratings
is replaced by another; at the test the same number of ratings is adapted to and the remaining ones
are for the evaluation. It leaves open the following.

- Test users are the first of a random order of all users who have the ratings to adapt to. One
  who has no more than these stays among them, but has nothing to be evaluated on.
- Training users are the others with enough ratings for training and validation. Only they fix
  the unit of the ratings and the baselines, so that no rating of a test user is used for them.
- Each time that a training user is drawn, their ratings are divided anew at random.
- Which items are the most rated is counted over all users.

The baselines predict without a network, by averages and biases: all learn from the training users;
what is said of a test user comes from the ratings to adapt to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

import odeopt
from benchmarks.problems import models
from benchmarks.problems.data_files import require
from benchmarks.problems.tasks import Batch, Task, move, take

Array = NDArray[Any]

JESTER_NOT_RATED = 9900


@dataclass(frozen=True)
class Table:
    """Ratings as three columns of equal length; every (user, item) pair occurs once."""

    user: Array
    item: Array
    rating: Array


@dataclass(frozen=True)
class Source:
    """A data file, how it is read, and what to tell a person who does not have it."""

    file: str
    read: Callable[[Path], Table]
    origin: str


def _read_text(path: Path, delimiter: str, header: int) -> Table:
    """Lines `user, item, rating, timestamp` after so many lines of header, gzipped."""
    lines = np.loadtxt(path, delimiter=delimiter, skiprows=header, usecols=(0, 1, 2), ndmin=2)
    return Table(lines[:, 0].astype(np.int64), lines[:, 1].astype(np.int64), lines[:, 2])


def _read_columns(path: Path) -> Table:
    """Arrays `user`, `item` and `rating` of equal length."""
    with np.load(path, allow_pickle=False) as file:
        user, item = file["user"].astype(np.int64), file["item"].astype(np.int64)
        return Table(user, item, file["rating"].astype(np.float64))


def _read_jester(path: Path) -> Table:
    """An array `ratings`, users by jokes, in hundredths, 9900 where there is none."""
    with np.load(path, allow_pickle=False) as file:
        matrix = file["ratings"]
    user, item = np.nonzero(matrix != JESTER_NOT_RATED)
    return Table(user, item, matrix[user, item] / 100)


SOURCES = {
    "movielens-small-2016": Source(
        "movielens_latest_small_2016_ratings.csv.gz",
        partial(_read_text, delimiter=",", header=1),
        "It is ratings.csv, gzipped, of MovieLens latest-small as released in October 2016 "
        "(100,004 ratings; later releases differ), by GroupLens: "
        "https://grouplens.org/datasets/movielens/latest/",
    ),
    "movielens-100k": Source(
        "movielens_100k_u.data.gz",
        partial(_read_text, delimiter="\t", header=0),
        "It is u.data, gzipped, of MovieLens-100K, by GroupLens: "
        "https://grouplens.org/datasets/movielens/100k/",
    ),
    "movielens-1m": Source(
        "movielens_1m.npz",
        _read_columns,
        "It holds the first three columns of ratings.dat of MovieLens-1M as NumPy arrays user, "
        "item and rating; get ratings.dat from GroupLens: "
        "https://grouplens.org/datasets/movielens/1m/",
    ),
    "jester-1": Source(
        "jester_1.npz",
        _read_jester,
        "It holds part 1 of Jester data set 1 as a NumPy array ratings (24983 x 100, in "
        "hundredths, 9900 where there is none); get the table from "
        "https://goldberg.berkeley.edu/jester-data/",
    ),
}
"""The readable data sets by name."""


def read(name: str, directory: Path | None) -> Table:
    """Read a data set of `SOURCES`.

    Raises:
        MissingDataError: The file is not there.
    """
    source = SOURCES[name]
    return source.read(require(directory, source.file, source.origin))


ITEMS = 100
MODEL = models.mlp([ITEMS, 40, 40, 1])
"""The paper's network on one-hot items: 5721 parameters."""


@dataclass(frozen=True)
class Ratings:
    """The ratings of the retained users on the most rated items.

    `mean` and `std`, of all of them, are the unit of every task's targets.
    """

    scores: Tensor  # shape [users, 100], NaN where there is none; items by falling count

    @cached_property
    def counts(self) -> Tensor:
        """The number of ratings of each user."""
        return (~self.scores.isnan()).sum(1)

    @cached_property
    def mean(self) -> float:
        """The mean rating."""
        return self.scores[~self.scores.isnan()].mean().item()

    @cached_property
    def std(self) -> float:
        """The standard deviation of the ratings."""
        return self.scores[~self.scores.isnan()].std(correction=0).item()

    def with_at_least(self, count: int) -> list[int]:
        """The users with at least `count` ratings, enough for train + validation = count."""
        return torch.nonzero(self.counts >= count).flatten().tolist()


def load(name: str, directory: Path | None, at_least: int = 10) -> Ratings:
    """Read a data set and keep its 100 most rated items and the users who rated them.

    A retained user rated at least so many of the retained items.

    Raises:
        MissingDataError: The file is not there.
    """
    matrix = most_rated(read(name, directory))
    return Ratings(torch.tensor(matrix[(~np.isnan(matrix)).sum(1) >= at_least]))


def made_up(users: int = 60, seed: int = 0) -> Ratings:
    """Ratings of nobody, for runs without data: half stars, 12 to 90 of each user.

    Users and items have biases, and one hidden trait each.
    """
    generator = Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    liking = normal(users, 1) / 2 + normal(1, ITEMS) / 2 + normal(users, 1) * normal(1, ITEMS) / 2
    stars = (2 * (3 + liking + normal(users, ITEMS) / 2)).round().clamp(1, 10) / 2
    counts = torch.randint(12, 91, (users, 1), generator=generator)
    places = torch.rand((users, ITEMS), generator=generator).argsort(1)
    return Ratings(stars.masked_fill(places >= counts, torch.nan))


def task(ratings: Ratings, user: int, seed: int, train: int = 10, validation: int = 15) -> Task:
    """The ratings of a user, a row of `ratings.scores`, split at random.

    Returns:
        Batches with one-hot items, x of shape [n, 100], and standardised ratings, y [n, 1].

    Raises:
        ValueError: The user has fewer ratings than train + validation.
    """
    items = torch.nonzero(~ratings.scores[user].isnan()).flatten()
    if len(items) < train + validation:
        raise ValueError(f"user {user} has {len(items)} ratings, {train} + {validation} needed")
    order = torch.randperm(len(items), generator=Generator().manual_seed(seed))
    chosen = items[order[: train + validation]]
    y = (ratings.scores[user, chosen] - ratings.mean) / ratings.std
    whole = Batch(_one_hot(chosen), y.unsqueeze(-1))
    return Task(take(whole, slice(train)), take(whole, slice(train, None)))


def most_rated(table: Table) -> Array:
    """Ratings [users, 100] of the most rated items (ties: lower item number), NaN for none."""
    items, counts = np.unique(table.item, return_counts=True)
    top = items[np.argsort(-counts, kind="stable")[:ITEMS]]
    column = np.full(items.max() + 1, -1)
    column[top] = np.arange(len(top))
    users, row = np.unique(table.user, return_inverse=True)
    kept = column[table.item] >= 0
    matrix = np.full((len(users), ITEMS), np.nan)
    matrix[row[kept], column[table.item[kept]]] = table.rating[kept]
    return matrix


_TEST, _TRAIN = 1, 2


class RatingBatch(NamedTuple):
    """Ratings of several users, padded where one has fewer than another."""

    x: Tensor  # one-hot items, shape [users, n, 100]
    y: Tensor  # ratings, shape [users, n, 1], 0 where padded
    known: Tensor  # False where padded, shape [users, n]

    def error(self, prediction: Tensor) -> Tensor:
        """The root mean square error of each user, NaN where there is nothing to predict."""
        squares = (prediction - self.y).squeeze(-1).square() * self.known
        return (squares.sum(-1) / self.known.sum(-1)).sqrt()


class MetaTest(NamedTuple):
    """The test users: ratings to adapt to, and all their others."""

    support: RatingBatch
    held_out: RatingBatch

    def batch(self) -> Batch:
        """The ratings to adapt to, without their mask: none is padded."""
        return Batch(self.support.x, self.support.y)

    def evaluated(self) -> Tensor:
        """Whether each test user has ratings left to be evaluated on, shape [users]."""
        return self.held_out.known.any(1)


class RatingTasks:
    """A data set divided into users for training and for the meta-test, in float64.

    The seed fixes who they are, and how ratings are divided into `shots` to adapt to and others.

    Raises:
        ValueError: There are too few users with enough ratings.
    """

    def __init__(
        self, ratings: Ratings, shots: int, validation: int, tests: int = 100, seed: int = 0
    ) -> None:
        self.shots, self.validation, self.seed = shots, validation, seed
        counts = ratings.counts
        order = torch.randperm(len(counts), generator=_generator(seed, 0))
        able = order[counts[order] >= shots]
        self.test_users = able[:tests]
        others = torch.ones(len(counts), dtype=torch.bool)
        others[self.test_users] = False
        self.train_users = torch.nonzero(others & (counts >= shots + validation)).flatten()
        if len(self.test_users) < tests or not len(self.train_users):
            raise ValueError(
                f"{len(able)} users have {shots} ratings and {len(self.train_users)} others"
                f" {shots} + {validation}; {tests} are needed for the test and some for training"
            )
        own = Ratings(ratings.scores[self.train_users])
        self.mean, self.std = own.mean, own.std
        self._scores = (ratings.scores - self.mean) / self.std

    def train_scores(self) -> Tensor:
        """All ratings of the training users, shape [users, 100], NaN where there is none."""
        return self._scores[self.train_users]

    def train_batch(self, rows: list[int], update: int) -> Task:
        """Tasks of some training users, given by their rows in `train_users`."""
        generator = _generator(self.seed, _TRAIN, update)
        items, y = self._shuffled(self.train_users[torch.tensor(rows)], generator)
        parts = slice(self.shots), slice(self.shots, self.shots + self.validation)
        return Task(*(Batch(_one_hot(items[:, p]), y[:, p].unsqueeze(-1)) for p in parts))

    def test(self) -> MetaTest:
        """The meta-test, the same whenever it is asked for."""
        items, y = self._shuffled(self.test_users, _generator(self.seed, _TEST))
        longest = int((~y.isnan()).sum(1).max())
        parts = (slice(self.shots), slice(self.shots, max(longest, self.shots + 1)))
        return MetaTest(*(_rated(items[:, part], y[:, part]) for part in parts))

    def _shuffled(self, users: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Each user's items in random order, unrated ones last, and the ratings, [users, 100]."""
        scores = self._scores[users]
        keys = torch.rand(scores.shape, generator=generator).masked_fill(scores.isnan(), 2.0)
        items = keys.argsort(1)
        return items, scores.gather(1, items)


class RatingPool:
    """Meta-batches of training users, in the order of `odeopt.TaskPool`, on a device."""

    def __init__(
        self, tasks: RatingTasks, batch_size: int, seed: int, device: torch.device,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        users = tasks.train_users
        self._order = odeopt.TaskPool(users, users, batch_size, seed)
        self._tasks, self._device, self._dtype = tasks, device, dtype

    def __call__(self, update: int) -> odeopt.TaskBatch:
        """The meta-batch of an update."""
        rows = self._order.indices(update)
        task = move(self._tasks.train_batch(rows, update), self._device, self._dtype)
        names = tuple(f"user {self._tasks.train_users[row]}" for row in rows)
        return odeopt.TaskBatch(task.train, task.validation, names)


def _generator(*seeds: int) -> Generator:
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed) % 2**63
    return Generator().manual_seed(mixed)


def _one_hot(items: Tensor) -> Tensor:
    return torch.eye(ITEMS, dtype=torch.float64)[items]


def _rated(items: Tensor, y: Tensor) -> RatingBatch:
    return RatingBatch(_one_hot(items), y.nan_to_num(0.0).unsqueeze(-1), ~y.isnan())


USER_RIDGE, ITEM_RIDGE = 5.0, 25.0
"""A bias is the sum of its residuals over their number plus this, so that few ratings say little.
Rounded by hand, not tuned: in the data sets here the variance of a user's ratings is three to six
times that of the users' means, and most items have so many that their constant hardly matters."""

SWEEPS = 30
"""Alternations between the biases of users and of items."""

BASELINES = {
    "global": "global mean",
    "item": "item means",
    "user": "user's own mean, shrunk",
    "biases": "item and user biases, shrunk",
}


def baseline_errors(train: Tensor, test: MetaTest) -> dict[str, Tensor]:
    """The held-out error of each baseline on each test user, by the names in `BASELINES`."""
    held_out = test.held_out
    return {name: held_out.error(p) for name, p in baseline_predictions(train, test).items()}


def baseline_predictions(train: Tensor, test: MetaTest) -> dict[str, Tensor]:
    """What each baseline predicts for the held-out ratings, shape [users, n, 1]."""
    held_out, nothing = test.held_out, torch.zeros(train.shape[1], dtype=train.dtype)
    bias = item_biases(train)
    by_item = torch.stack([nothing, train.nanmean(0).nan_to_num(0.0), nothing, bias])
    by_user = (0.0, 0.0, user_biases(test.support, nothing), user_biases(test.support, bias))
    return {
        name: held_out.x @ items.unsqueeze(-1) + users
        for name, items, users in zip(BASELINES, by_item, by_user, strict=True)
    }


def item_biases(train: Tensor) -> Tensor:
    r"""Item biases b of the ridge regression on user and item biases, shape [100].

    It minimises $\sum (r_{ui} - a_u - b_i)^2 + \rho_a \sum a_u^2 + \rho_b \sum b_i^2$ over the
    training users, by turns.
    """
    known = ~train.isnan()
    scores, item = train.nan_to_num(0.0), torch.zeros(train.shape[1], dtype=train.dtype)
    per_user, per_item = known.sum(1) + USER_RIDGE, known.sum(0) + ITEM_RIDGE
    for _ in range(SWEEPS):
        user = ((scores - item) * known).sum(1) / per_user
        item = ((scores - user.unsqueeze(1)) * known).sum(0) / per_item
    return item


def user_biases(support: RatingBatch, item: Tensor) -> Tensor:
    """The bias of each test user, given those of items, shape [users, 1, 1]."""
    residuals = (support.y - support.x @ item.unsqueeze(-1)).squeeze(-1) * support.known
    return (residuals.sum(1) / (support.known.sum(1) + USER_RIDGE)).reshape(-1, 1, 1)
