"""The inner problems of the suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.problems import cosmixture, digits, losses, models, ratings
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, Task, stack

RATINGS = "movielens-small-2016"
DIGITS_MLP = models.mlp([64, 32, 5])
DIGITS_CONV = models.conv_net(outputs=5)
SHOTS = 10
VALIDATION = 15


@dataclass(frozen=True)
class Case:
    """A model, a loss and tasks by seed.

    Attributes:
        name: for tables and keys.
        loss: `loss(params, batch)`, the inner and the outer loss.
        parameters: the random initialisation of a seed.
        task: the task of a seed.
        rate: RK4 steps per unit of time that make a reference.
    """

    name: str
    loss: Callable[[Parameters, Batch], Tensor]
    parameters: Callable[[int], Parameters]
    task: Callable[[int], Task]
    rate: int

    def tasks(self, seeds: Sequence[int]) -> Task:
        """The tasks of some seeds, stacked."""
        return stack([self.task(seed) for seed in seeds])

    def initial_states(self, seeds: Sequence[int]) -> Parameters:
        """The initialisations of some seeds, stacked."""
        drawn = [self.parameters(seed) for seed in seeds]
        return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}


def cosmixture_case(protocol: str = "code") -> Case:
    """The paper's regression problem: 1185 parameters, 100 points."""

    def loss(params: Parameters, batch: Batch) -> Tensor:
        return losses.half_mean_square(cosmixture.MODEL.apply(params, batch.x), batch.y)

    return Case(
        f"CosMixture ({protocol})",
        loss,
        cosmixture.initial_parameters,
        lambda seed: cosmixture.task(seed, protocol),
        rate=64,
    )


def digits_cases() -> tuple[Case, Case]:
    """Five-way, ten-shot digits with a perceptron and with a convolutional net, both smooth."""

    def perceptron(params: Parameters, batch: Batch) -> Tensor:
        return losses.cross_entropy(DIGITS_MLP.apply(params, batch.x), batch.y)

    def convolutional(params: Parameters, batch: Batch) -> Tensor:
        return losses.cross_entropy(DIGITS_CONV.apply(params, batch.x), batch.y)

    return (
        Case(
            "digits (MLP)",
            perceptron,
            DIGITS_MLP.init,
            lambda s: digits.flatten(digits.task(s)),
            rate=48,
        ),
        Case("digits (conv net)", convolutional, DIGITS_CONV.init, digits.task, rate=24),
    )


def ratings_case(data: Path) -> Case:
    """One user's ratings, one-hot inputs, the paper's network 100-40-40-1."""
    table = ratings.load(RATINGS, data)

    def loss(params: Parameters, batch: Batch) -> Tensor:
        return losses.half_mean_square(ratings.MODEL.apply(params, batch.x), batch.y)

    users = table.with_at_least(SHOTS + VALIDATION)
    return Case(
        "one user's ratings",
        loss,
        ratings.MODEL.init,
        lambda seed: ratings.task(table, users[seed], seed, SHOTS, VALIDATION),
        rate=24,
    )
