"""What the families of random two-dimensional functions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from benchmarks.problems.tasks import Batch

Function = Callable[[Tensor], Tensor]
"""Values [n, 1] at points [n, 2]."""

GRID = 31
"""Points of the test grid along each axis."""


@dataclass(frozen=True)
class Family:
    """Random functions on a square.

    Attributes:
        draw: Draws one function.
        radius: The square is [-radius, radius]^2.
    """

    draw: Callable[[Generator], Function]
    radius: float

    def points(self, count: int, generator: Generator) -> Tensor:
        """Uniform points [count, 2]."""
        unit = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return self.radius * (2 * unit - 1)

    def sample(self, function: Function, count: int, generator: Generator) -> Batch:
        """Values at uniform points."""
        x = self.points(count, generator)
        return Batch(x, function(x))

    def grid(self, function: Function) -> Batch:
        """Values on a grid of 31 x 31 points."""
        axis = torch.linspace(-self.radius, self.radius, GRID, dtype=torch.float64)
        x = torch.cartesian_prod(axis, axis)
        return Batch(x, function(x))


@dataclass(frozen=True)
class Standardisation:
    """Means and standard deviations of the inputs, shape [2], and the targets, shape [1]."""

    x_mean: Tensor
    x_std: Tensor
    y_mean: Tensor
    y_std: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Standardisation:
        """That of points [n, 2] and values [n, 1]."""
        x, y = batch
        return cls(x.mean(0), x.std(0, correction=0), y.mean(0), y.std(0, correction=0))

    def __call__(self, batch: Batch) -> Batch:
        """The batch in units of the standard deviations."""
        return Batch((batch.x - self.x_mean) / self.x_std, (batch.y - self.y_mean) / self.y_std)


def uniform(low: float, high: float, generator: Generator) -> float:
    """A uniform number."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def join(batches: list[Batch]) -> Batch:
    """Batches one after the other."""
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat([b.y for b in batches]))
