"""The regression tasks of "Meta-Learning with Adjoint Methods" (section 5.1) and its Figure 2.

A task is to learn a random function of two variables from points drawn uniformly. The paper's text
and the code released with it state different constants; both are here, as the protocols "text" and
"code".

CosMixture is `f(x) = -s A sum_i cos(w x_i + p) - sum_i x_i^2` on [-1, 1]^2; A, w and p are drawn
once per task. The text's tasks are much easier: their common bowl explains nearly all of each.

Alpine is `f(x) = sum_i |x_i sin(x_i + p_i) + x_i / 10|` on [-10, 10]^2. In the text the two phases
are drawn independently from ±5 pi/12; in the code one such phase is drawn for both, and pi is
added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Generator, Tensor

from benchmarks.problems import models
from benchmarks.problems.tasks import Batch, Task, join, stack, take

MODEL = models.mlp([2, 32, 32, 1])
"""The paper's network: 1185 parameters."""

GRID = 31
"""Points of grids along each axis."""

UNIT_SEED, UNIT_TASKS, UNIT_POINTS = 2023, 200, 2000
"""Of the tasks that the standardisation is fitted on, and their random points."""

LARGEST_SHIFT = 5 * math.pi / 12

Function = Callable[[Tensor], Tensor]
"""Values [n, 1] at points [n, 2]."""


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


@dataclass(frozen=True)
class Family:
    """Random functions on a square, by protocol."""

    draw: Callable[[str, Generator], Function]  # draws one function of a protocol
    radius: float  # the square is [-radius, radius]^2
    grid_in_unit: bool  # whether the standardisation is fitted on a grid as well

    def points(self, count: int, generator: Generator) -> Tensor:
        """Uniform points [count, 2]."""
        unit = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return self.radius * (2 * unit - 1)

    def grid(self) -> Tensor:
        """31 x 31 points, [961, 2]."""
        axis = torch.linspace(-self.radius, self.radius, GRID, dtype=torch.float64)
        return torch.cartesian_prod(axis, axis)

    def sample(self, function: Function, count: int, generator: Generator) -> Batch:
        """Values at uniform points."""
        x = self.points(count, generator)
        return Batch(x, function(x))

    @cache  # noqa: B019  (there are two families)
    def standardisation(self, protocol: str) -> Standardisation:
        """The one standardisation of all tasks of a protocol, fitted on 200 tasks of its own.

        The released code does so for CosMixture, with 2000 random points and a grid in each task.
        """
        generator = Generator().manual_seed(UNIT_SEED)
        functions = (self.draw(protocol, generator) for _ in range(UNIT_TASKS))
        # with a grid each function is drawn before its points, else all are drawn before all points
        drawn = functions if self.grid_in_unit else list(functions)
        more = [self.grid()] if self.grid_in_unit else []
        batches: list[Batch] = []
        for function in drawn:
            x = torch.cat([self.points(UNIT_POINTS, generator), *more])
            batches.append(Batch(x, function(x)))
        return Standardisation.of(join(batches))

    def task(self, seed: int, protocol: str, shots: int = 100) -> Task:
        """A task in standardised units: so many training points, and as many for validation.

        Raises:
            KeyError: The protocol is neither "code" nor "text".
        """
        generator = Generator().manual_seed(seed)
        function, scaled = self.draw(protocol, generator), self.standardisation(protocol)
        train, validation = (scaled(self.sample(function, shots, generator)) for _ in range(2))
        return Task(train, validation)

    def tasks(self, seeds: Sequence[int], protocol: str, shots: int = 100) -> Task:
        """The tasks of some seeds, stacked along a leading dimension."""
        return stack([self.task(seed, protocol, shots) for seed in seeds])


@dataclass(frozen=True)
class Ranges:
    """The factor s of CosMixture and the ranges from which A, w and p are drawn uniformly."""

    scale: float
    amplitude: tuple[float, float]
    frequency: tuple[float, float]
    phase: tuple[float, float]


PROTOCOLS = {
    "code": Ranges(1.0, (0.1, 1.0), (3 * math.pi, 6 * math.pi), (0.5, 2.0)),
    "text": Ranges(0.1, (0.1, 1.0), (0.5 * math.pi, 2 * math.pi), (3.0, 6.0)),
}


@dataclass(frozen=True)
class CosMixture:
    """One CosMixture function."""

    scale: float
    amplitude: float
    frequency: float
    phase: float

    def __call__(self, x: Tensor) -> Tensor:
        """Values [n, 1] at points [n, 2]."""
        waves = torch.cos(self.frequency * x + self.phase).sum(-1, keepdim=True)
        return -self.scale * self.amplitude * waves - x.square().sum(-1, keepdim=True)


@dataclass(frozen=True)
class Alpine:
    """One Alpine function, of two phases."""

    phases: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Values [n, 1] at points [n, 2]."""
        return (x * torch.sin(x + self.phases) + 0.1 * x).abs().sum(-1, keepdim=True)


def uniform(low: float, high: float, generator: Generator) -> float:
    """A uniform number."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _draw_cosmixture(protocol: str, generator: Generator) -> CosMixture:
    own = PROTOCOLS[protocol]
    ranges = own.amplitude, own.frequency, own.phase
    return CosMixture(own.scale, *(uniform(*ends, generator) for ends in ranges))


def _draw_alpine(protocol: str, generator: Generator) -> Alpine:
    count = {"code": 1, "text": 2}[protocol]
    shifts = [uniform(-LARGEST_SHIFT, LARGEST_SHIFT, generator) for _ in range(count)]
    if protocol == "code":
        shifts = 2 * [math.pi + shifts[0]]
    return Alpine(torch.tensor(shifts, dtype=torch.float64))


COSMIXTURE = Family(_draw_cosmixture, radius=1.0, grid_in_unit=True)
ALPINE = Family(_draw_alpine, radius=10.0, grid_in_unit=False)
FAMILIES = {"cosmixture": COSMIXTURE, "alpine": ALPINE}


FUNCTIONS = 100
"""For meta-training, and as many for the meta-test."""

POOL = 1000
EPISODES = {"code": 10, "text": 1}
"""Episodes per training function."""

FUNCTION_SEED, POINT_SEED = 100, 200


class Regression:
    """The meta-regression protocol of the paper's Figure 2, in float64.

    100 functions for meta-training and 100 others for the meta-test, each with a pool of 1000
    training and 1000 validation points; inputs and targets of all 200 are standardised together,
    the test functions included, as in the released code. There each training function comes in ten
    episodes, with other points of its pools in each, so that up to ten times the stated "shots" are
    seen; the paper's text has one set of points per function. The random streams are this
    project's own.

    Args:
        family: A name in `FAMILIES`.
        protocol: "code" or "text".
        shots: Training points per task, and as many validation points.
    """

    def __init__(self, family: str, protocol: str, shots: int) -> None:
        if not 0 < shots <= POOL:
            raise ValueError(f"shots is {shots}; expected 1 to {POOL}")
        if family not in FAMILIES:
            raise ValueError(f"unknown family {family!r}; expected 'cosmixture' or 'alpine'")
        self._protocol, self._shots = protocol, shots
        self._train, self._validation, self._test = _pools(FAMILIES[family], protocol)

    @property
    def episodes(self) -> int:
        """The number of training tasks."""
        return FUNCTIONS * EPISODES[self._protocol]

    def train_batch(self, indices: Sequence[int]) -> Task:
        """Training tasks, stacked: episode i is of function i mod 100."""
        functions = [index % FUNCTIONS for index in indices]
        return Task(
            self._pick(self._train, functions, [2 * index for index in indices]),
            self._pick(self._validation, functions, [2 * index + 1 for index in indices]),
        )

    def held_out_support(self) -> Batch:
        """Training points of the test tasks, [100, shots, ...]."""
        return self._pick(
            self._train, range(FUNCTIONS, 2 * FUNCTIONS), range(0, 2 * FUNCTIONS, 2)
        )  # fmt: skip

    def held_out_grid(self) -> Batch:
        """Where the test tasks are evaluated: 31 x 31 points, or 100 random ones ("text")."""
        return take(self._test, slice(FUNCTIONS, None))

    def constant_rmse(self) -> float:
        """The nRMSE of predicting the overall mean, averaged over the test tasks."""
        return self.held_out_grid().y.square().mean((1, 2)).sqrt().mean().item()

    def _pick(self, pools: Batch, functions: Sequence[int], seeds: Sequence[int]) -> Batch:
        """Different random points of the pools of some functions, stacked."""
        orders = [torch.randperm(POOL, generator=Generator().manual_seed(seed)) for seed in seeds]
        chosen = torch.stack([order[: self._shots] for order in orders])
        return take(pools, (torch.tensor(functions)[:, None], chosen))


def _pools(family: Family, protocol: str) -> tuple[Batch, Batch, Batch]:
    """The points of all functions for training, validation and the test, in standardised units."""
    functions = Generator().manual_seed(FUNCTION_SEED)
    points = Generator().manual_seed(POINT_SEED)
    pools: list[tuple[Batch, Batch, Batch]] = []
    for _ in range(2 * FUNCTIONS):
        f = family.draw(protocol, functions)
        train, validation = (family.sample(f, POOL, points) for _ in range(2))
        x = family.grid() if protocol == "code" else family.points(100, points)
        pools.append((train, validation, Batch(x, f(x))))
    scaled = Standardisation.of(join([batch for batches in pools for batch in batches]))
    train, validation, test = map(scaled, stack(pools))
    return train, validation, test
