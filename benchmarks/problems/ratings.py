"""Collaborative filtering as few-shot tasks: one user's ratings are one task.

"Meta-Learning with Adjoint Methods" (section 5.3) takes the 100 most rated items and the users
who rated at least 20 of them. Its task counts, 489 and 4985, come out exactly with at least 10
instead, on the 2016 release of MovieLens latest-small and on MovieLens-1M. That reading is the
default here; the other, on the classic MovieLens-100K, is `at_least=20`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.problems import models, rating_files
from benchmarks.problems.rating_files import Array, Table
from benchmarks.problems.tasks import Batch, Task

ITEMS = 100
MODEL = models.mlp([ITEMS, 40, 40, 1])
"""The paper's network on one-hot items: 5721 parameters."""


@dataclass(frozen=True)
class Ratings:
    """The ratings of the retained users on the most rated items.

    Attributes:
        scores: Ratings, shape [users, 100], NaN where there is none; items by falling count.
        mean: The mean of all scores.
        std: Their standard deviation, the unit of every task's targets.
    """

    scores: Tensor
    mean: float
    std: float

    @property
    def users(self) -> int:
        """The number of retained users."""
        return len(self.scores)

    def with_at_least(self, count: int) -> list[int]:
        """The users with at least `count` ratings, enough for train + validation = count."""
        rated = (~self.scores.isnan()).sum(1)
        return torch.nonzero(rated >= count).flatten().tolist()


def load(name: str, directory: Path | None, at_least: int = 10) -> Ratings:
    """Read a data set and keep its 100 most rated items and the users who rated them.

    Args:
        name: "movielens-small-2016", "movielens-100k", "movielens-1m" or "jester-1".
        directory: The folder of the data sets.
        at_least: How many of the retained items a retained user rated at least.

    Raises:
        MissingDataError: The file is not there.
    """
    matrix = most_rated(rating_files.read(name, directory))
    scores = torch.tensor(matrix[(~np.isnan(matrix)).sum(1) >= at_least])
    return _ratings(scores)


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
    return _ratings(stars.masked_fill(places >= counts, torch.nan))


def task(ratings: Ratings, user: int, seed: int, train: int = 10, validation: int = 15) -> Task:
    """A user's ratings, split at random.

    Args:
        ratings: The data set.
        user: A row of `ratings.scores`.
        seed: Fixes the split.
        train: The number of training ratings.
        validation: The number of other ratings for validation.

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
    return Task(_batch(ratings, user, chosen[:train]), _batch(ratings, user, chosen[train:]))


def _ratings(scores: Tensor) -> Ratings:
    known = scores[~scores.isnan()]
    return Ratings(scores, known.mean().item(), known.std(correction=0).item())


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


def _batch(ratings: Ratings, user: int, items: Tensor) -> Batch:
    x = torch.eye(ITEMS, dtype=torch.float64)[items]
    y = (ratings.scores[user, items] - ratings.mean) / ratings.std
    return Batch(x, y.unsqueeze(-1))
