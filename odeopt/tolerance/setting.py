"""A solver with a resolution: what there is to choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from odeopt.grid import TimeGrid
from odeopt.solver.base import StepSolver
from odeopt.solver.runge_kutta import RK4, Chebyshev2, Chebyshev3, Euler, ModifiedEuler
from odeopt.solver.stabilized import StabilizedRK

FIXED = {
    "euler": Euler(),
    "modified-euler": ModifiedEuler(),
    "chebyshev-2": Chebyshev2(),
    "chebyshev-3": Chebyshev3(),
    "rk4": RK4(),
}
"""Solvers with fixed steps."""

STABILIZED = "stabilized-rk"

RTOL_POWER = 5 / 3
"""The tolerance of a step for an error in the gradient, in the stabilised solver: measured on
regression by a small network, whose gradient error grows as the tolerance to the power of 0.6."""

PAIRS = {
    "euler": 1.05,
    "modified-euler": 1.5,
    "chebyshev-2": 1.5,
    "chebyshev-3": 1.05,
    "rk4": 1.05,
    STABILIZED: 7.0,
}
"""How many times as fine the finer setting of a pair is; of steps it has one more at least."""

MOST_STEPS = 100_000
"""More steps than these are not tried."""


@dataclass(frozen=True)
class Setting:
    """A solver and how fine it is; the adjoint is the exact one, every state is kept.

    Attributes:
        method: a name in `FIXED`, or `STABILIZED`.
        fineness: the number of steps, or one over the tolerance of a step.
    """

    method: str
    fineness: float

    @property
    def solver(self) -> StepSolver:
        """The solver."""
        if self.method == STABILIZED:
            return StabilizedRK(1 / self.fineness, 1 / self.fineness)
        return FIXED[self.method]

    @property
    def steps(self) -> int | None:
        """The number of steps; None where the solver chooses it."""
        return None if self.method == STABILIZED else round(self.fineness)

    @property
    def power(self) -> float:
        """The error goes as one over the fineness to this power."""
        return 1 / RTOL_POWER if self.method == STABILIZED else self.solver.order

    def finer(self, factor: float) -> Setting:
        """With an error that is smaller by a factor (larger if it is below 1)."""
        return self._at(self.fineness * factor ** (1 / self.power))

    def _at(self, fineness: float) -> Setting:
        """The same method, as fine as that within the limits of what is tried."""
        if self.method == STABILIZED:
            return replace(self, fineness=min(max(fineness, 5.0), 1e12))
        return replace(self, fineness=float(max(1, math.ceil(min(fineness, MOST_STEPS) - 1e-9))))

    def with_steps(self, factor: float) -> Setting:
        """With that many times as many steps."""
        return self._at(self.fineness * factor ** (self.solver.order / self.power))

    @property
    def cost(self) -> float:
        """Gradients and Hessian-vector products of fixed steps: one of each per stage."""
        return 2 * self.solver.stages * self.fineness

    @property
    def partner(self) -> Setting:
        """What it is compared with; fixed steps with one more at least."""
        fineness = self.fineness * PAIRS[self.method]
        if self.steps is not None:
            fineness = max(float(round(fineness)), self.fineness + 1)
        return replace(self, fineness=fineness)

    def beside(self, coarser: Setting, parts: Sequence[int]) -> tuple[list[int], float]:
        """Its numbers of steps beside those of a coarser setting; how much smaller its error is."""
        more = self.fineness / coarser.fineness
        if self.steps is None:
            return list(parts), more**self.power
        counts = [math.ceil(more * count - 1e-9) for count in parts]
        ratio = min(own / other for own, other in zip(counts, parts, strict=True))
        return counts, ratio**self.power

    def parts(self, grid: TimeGrid) -> list[int]:
        """The numbers of steps between the ends and the observed states of a grid."""
        marks = landmarks(grid)
        if self.steps is None:
            return [1] * spans(grid)
        times = grid.times.detach()
        lengths = [
            (times[..., stop] - times[..., start]).amax().item() for start, stop in pairwise(marks)
        ]
        total = sum(lengths)
        shares = [length / total if total > 0 else 1.0 for length in lengths]
        return [max(1, math.ceil(self.steps * share - 1e-9)) for share in shares]

    def grid(self, grid: TimeGrid) -> TimeGrid:
        """Its grid over the horizon of another one, with the same observed times."""
        return divided(grid, self.parts(grid))

    def __str__(self) -> str:
        if self.method == STABILIZED:
            return f"StabilizedRK with a tolerance of {1 / self.fineness:.1e} a step"
        return f"{type(self.solver).__name__} with {self.steps} steps"


def divided(grid: TimeGrid, parts: Sequence[int]) -> TimeGrid:
    """A grid with that many even steps between the ends and the observed states of another one."""
    times = grid.times.detach()
    pieces: list[Tensor] = []
    observe, place = {0: 0}, 0
    for (start, stop), count in zip(pairwise(landmarks(grid)), parts, strict=True):
        length = (times[..., stop] - times[..., start])[..., None]
        pieces.append((length / count).expand(*length.shape[:-1], count))
        place += count
        observe[stop] = place
    at = [observe[index] for index in grid.observe]
    begin, dt = times[..., :1], torch.cat(pieces, dim=-1)
    return TimeGrid(torch.cat([begin, begin + dt.cumsum(-1)], dim=-1), at, dt=dt)


def landmarks(grid: TimeGrid) -> list[int]:
    """The indices between which steps are even: both ends and the observed states."""
    return sorted({0, grid.steps, *grid.observe})


def spans(grid: TimeGrid) -> int:
    """How many parts of a grid have even steps."""
    return len(landmarks(grid)) - 1


def gather_dt(found: Tensor, made: TimeGrid, asked: TimeGrid) -> Tensor:
    """Gradients w.r.t. the steps asked for, from those w.r.t. the steps that were made.

    Each step of a part of the grid takes the same share of the part's length.
    """
    inner = landmarks(made)
    outer = landmarks(asked)
    pieces: list[Tensor] = []
    for (a, b), (c, d) in zip(pairwise(inner), pairwise(outer), strict=True):
        share = found[..., a:b].mean(-1, keepdim=True)
        pieces.append(share.expand(*share.shape[:-1], d - c))
    return torch.cat(pieces, dim=-1)


def longest(grid: TimeGrid, rate: Tensor | float = 1.0) -> float:
    """The longest horizon of a task; with a rate, in units of its inverse."""
    length = (grid.times[..., -1] - grid.times[..., 0]).detach()
    return (length * rate).amax().item()
