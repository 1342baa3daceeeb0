"""Ratings divided for meta-learning: most users for training, some others for the meta-test.

The paper (section 5.3) says: 100 users for the test, the others for meta-learning; a sampled task
with too few ratings is replaced by another; at the test the same number of ratings is adapted to
and the remaining ones are for the evaluation. It leaves open the following.

- Test users are the first of a random order of all users who have the ratings to adapt to. One
  who has no more than these stays among them, but has nothing to be evaluated on.
- Training users are the others with enough ratings for training and validation. Only they fix
  the unit of the ratings and the baselines, so that no rating of a test user is used for them.
- Each time that a training user is drawn, their ratings are divided anew at random.
- Which items are the most rated is counted over all users.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

import odeopt
from benchmarks.problems.ratings import ITEMS, Ratings
from benchmarks.problems.tasks import Batch, Task

_TEST, _TRAIN = 1, 2


class Rated(NamedTuple):
    """Ratings of several users, padded where one has fewer than another.

    Attributes:
        x: One-hot items, shape [users, n, 100].
        y: Ratings, shape [users, n, 1], 0 where padded.
        known: False where padded, shape [users, n].
    """

    x: Tensor
    y: Tensor
    known: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Rated:
        """The same on a device."""
        return Rated(self.x.to(device, dtype), self.y.to(device, dtype), self.known.to(device))

    def error(self, prediction: Tensor) -> Tensor:
        """The root mean square error of each user, NaN where there is nothing to predict.

        Args:
            prediction: What is predicted, shape [..., n, 1] like y.
        """
        squares = (prediction - self.y).squeeze(-1).square() * self.known
        return (squares.sum(-1) / self.known.sum(-1)).sqrt()


class MetaTest(NamedTuple):
    """The test users: ratings to adapt to, and all their others."""

    support: Rated
    held_out: Rated

    def to(self, device: torch.device, dtype: torch.dtype) -> MetaTest:
        """The same on a device."""
        return MetaTest(self.support.to(device, dtype), self.held_out.to(device, dtype))

    def batch(self) -> Batch:
        """The ratings to adapt to, without their mask: none is padded."""
        return Batch(self.support.x, self.support.y)

    def evaluated(self) -> Tensor:
        """Whether each test user has ratings left to be evaluated on, shape [users]."""
        return self.held_out.known.any(1)


class RatingTasks:
    """A data set divided into users for training and for the meta-test, in float64.

    Args:
        ratings: The data set.
        shots: Ratings to adapt to.
        validation: Ratings for validation in meta-training.
        tests: How many users are for the meta-test.
        seed: Fixes who they are, and how ratings are divided.

    Raises:
        ValueError: There are too few users with enough ratings.
    """

    def __init__(
        self, ratings: Ratings, shots: int, validation: int, tests: int = 100, seed: int = 0
    ) -> None:
        self.shots, self.validation, self.seed = shots, validation, seed
        counts = (~ratings.scores.isnan()).sum(1)
        order = torch.randperm(ratings.users, generator=_generator(seed, 0))
        able = order[counts[order] >= shots]
        self.test_users = able[:tests]
        others = torch.ones(ratings.users, dtype=torch.bool)
        others[self.test_users] = False
        self.train_users = torch.nonzero(others & (counts >= shots + validation)).flatten()
        if len(self.test_users) < tests or not len(self.train_users):
            raise ValueError(
                f"{len(able)} users have {shots} ratings and {len(self.train_users)} others"
                f" {shots} + {validation}; {tests} are needed for the test and some for training"
            )
        own = ratings.scores[self.train_users]
        own = own[~own.isnan()]
        self.mean, self.std = own.mean().item(), own.std(correction=0).item()
        self._scores = (ratings.scores - self.mean) / self.std

    def train_scores(self) -> Tensor:
        """All ratings of the training users, shape [users, 100], NaN where there is none."""
        return self._scores[self.train_users]

    def train_batch(self, rows: list[int], update: int) -> Task:
        """Tasks of some training users, given by their rows in `train_users`."""
        generator = _generator(self.seed, _TRAIN, update)
        items, y = self._shuffled(self.train_users[torch.tensor(rows)], generator)
        middle, end = self.shots, self.shots + self.validation
        train, validation = (
            Batch(_one_hot(items[:, part]), y[:, part].unsqueeze(-1))
            for part in (slice(middle), slice(middle, end))
        )
        return Task(train, validation)

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
    """Meta-batches of training users, as `odeopt.TaskPool` orders them.

    Args:
        tasks: The divided data set.
        batch_size: Users per meta-batch.
        seed: Fixes their order.
        device: Where the tasks go.
        dtype: Their type.
    """

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
        task = self._tasks.train_batch(rows, update).to(self._device, self._dtype)
        names = tuple(f"user {self._tasks.train_users[row]}" for row in rows)
        return odeopt.TaskBatch(task.train, task.validation, names)


def _generator(*seeds: int) -> Generator:
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 1_000_003 + seed) % 2**63
    return Generator().manual_seed(mixed)


def _one_hot(items: Tensor) -> Tensor:
    return torch.eye(ITEMS, dtype=torch.float64)[items]


def _rated(items: Tensor, y: Tensor) -> Rated:
    return Rated(_one_hot(items), y.nan_to_num(0.0).unsqueeze(-1), ~y.isnan())
