"""The CosMixture regression tasks of "Meta-Learning with Adjoint Methods" (section 5.1).

A task is to learn `f(x) = -s A sum_i cos(w x_i + p) - sum_i x_i^2` on [-1, 1]^2 from points
drawn uniformly; A, w and p are drawn once per task. The paper's text and the code released
with it state different constants, and the text's tasks are much easier: their common bowl
explains nearly all of each. Both are here, as the protocols "text" and "code".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Generator, Tensor

from benchmarks.problems import models
from benchmarks.problems.functions import Standardisation, join, uniform
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, Task, stack

MODEL = models.mlp([2, 32, 32, 1])
"""The paper's network: 1185 parameters."""

POOL_SEED = 2023
POOL_TASKS = 200
POOL_POINTS = 2000
POOL_GRID = 31


@dataclass(frozen=True)
class Protocol:
    """The factor s and the ranges from which A, w and p are drawn uniformly."""

    scale: float
    amplitude: tuple[float, float]
    frequency: tuple[float, float]
    phase: tuple[float, float]


PROTOCOLS = {
    "code": Protocol(1.0, (0.1, 1.0), (3 * math.pi, 6 * math.pi), (0.5, 2.0)),
    "text": Protocol(0.1, (0.1, 1.0), (0.5 * math.pi, 2 * math.pi), (3.0, 6.0)),
}


@dataclass(frozen=True)
class Function:
    """One CosMixture function."""

    scale: float
    amplitude: float
    frequency: float
    phase: float

    def __call__(self, x: Tensor) -> Tensor:
        """Values [n, 1] at points [n, 2]."""
        waves = torch.cos(self.frequency * x + self.phase).sum(-1, keepdim=True)
        return -self.scale * self.amplitude * waves - x.square().sum(-1, keepdim=True)


def task(seed: int, protocol: str, shots: int = 100) -> Task:
    """A task in standardised units.

    Args:
        seed: Fixes the function and the points.
        protocol: "code" or "text".
        shots: How many training points, and how many other points for validation.
    """
    generator = Generator().manual_seed(seed)
    function = draw_function(PROTOCOLS[protocol], generator)
    scaled = standardisation(protocol)
    return Task(
        scaled(_sample(function, shots, generator)), scaled(_sample(function, shots, generator))
    )


def tasks(seeds: Sequence[int], protocol: str, shots: int = 100) -> Task:
    """The tasks of some seeds, stacked along a leading dimension."""
    return stack([task(seed, protocol, shots) for seed in seeds])


def initial_parameters(seed: int) -> Parameters:
    """Random parameters of `MODEL`."""
    return MODEL.init(seed)


def draw_function(protocol: Protocol, generator: Generator) -> Function:
    """Draw the three numbers of a function."""
    return Function(
        protocol.scale,
        uniform(*protocol.amplitude, generator),
        uniform(*protocol.frequency, generator),
        uniform(*protocol.phase, generator),
    )


@cache
def standardisation(protocol: str) -> Standardisation:
    """The one standardisation of all tasks of a protocol.

    As in the released code it is fitted once on 200 tasks, with 2000 random points and a grid
    of 31x31 points in each; here those tasks are drawn with a seed of their own.
    """
    generator = Generator().manual_seed(POOL_SEED)
    ranges = PROTOCOLS[protocol]
    batches = [_pool_batch(draw_function(ranges, generator), generator) for _ in range(POOL_TASKS)]
    return Standardisation.of(join(batches))


def _pool_batch(function: Function, generator: Generator) -> Batch:
    axis = torch.linspace(-1, 1, POOL_GRID, dtype=torch.float64)
    x = torch.cat([_points(POOL_POINTS, generator), torch.cartesian_prod(axis, axis)])
    return Batch(x, function(x))


def _sample(function: Function, count: int, generator: Generator) -> Batch:
    x = _points(count, generator)
    return Batch(x, function(x))


def _points(count: int, generator: Generator) -> Tensor:
    return 2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1
