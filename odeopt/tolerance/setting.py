"""A solver with a resolution: what there is to choose from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from odeopt.grid import TimeGrid
from odeopt.solver.base import Solver
from odeopt.solver.runge_kutta import RK4, Euler, ModifiedEuler
from odeopt.solver.stabilized import StabilizedRK

FIXED = {"euler": Euler(), "modified-euler": ModifiedEuler(), "rk4": RK4()}
"""Solvers with fixed steps."""

STABILIZED = "stabilized-rk"

RTOL_POWER = 5 / 3
"""The tolerance of a step for an error in the gradient, in the stabilised solver: measured on
regression by a small network, whose gradient error grows as the tolerance to the power of 0.6."""

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
    def solver(self) -> Solver:
        """The solver."""
        if self.method == STABILIZED:
            return StabilizedRK(1 / self.fineness, 1 / self.fineness)
        return FIXED[self.method]

    @property
    def steps(self) -> int | None:
        """The number of steps; None where the solver chooses it."""
        return None if self.method == STABILIZED else round(self.fineness)

    def finer(self, factor: float) -> Setting:
        """With an error that is smaller by a factor (larger if it is below 1)."""
        if self.method == STABILIZED:
            fineness = self.fineness * factor**RTOL_POWER
            return replace(self, fineness=min(max(fineness, 5.0), 1e12))
        steps = self.fineness * factor ** (1 / FIXED[self.method].order)
        return replace(self, fineness=float(max(1, math.ceil(min(steps, MOST_STEPS) - 1e-9))))

    @property
    def doubled(self) -> Setting:
        """With twice as many steps."""
        return replace(self, fineness=2 * self.fineness)

    def grid(self, grid: TimeGrid) -> TimeGrid:
        """Its grid over the horizon of another one, with the same observed times."""
        marks = landmarks(grid)
        times = grid.times.detach()
        steps = self.steps
        parts = [1] * (len(marks) - 1) if steps is None else _share(times, marks, steps)
        pieces: list[Tensor] = []
        observe, place = {0: 0}, 0
        for (start, stop), count in zip(pairwise(marks), parts, strict=True):
            length = (times[..., stop] - times[..., start])[..., None]
            pieces.append((length / count).expand(*length.shape[:-1], count))
            place += count
            observe[stop] = place
        at = [observe[index] for index in grid.observe]
        return _from_steps(times[..., :1], torch.cat(pieces, dim=-1), at)

    def __str__(self) -> str:
        if self.method == STABILIZED:
            return f"StabilizedRK with a tolerance of {1 / self.fineness:.1e} a step"
        return f"{type(self.solver).__name__} with {self.steps} steps"


def halved(grid: TimeGrid) -> TimeGrid:
    """The grid with each step made in two, and the same observed times."""
    dt = (grid.dt / 2).repeat_interleave(2, -1)
    return _from_steps(grid.times[..., :1], dt, [2 * index for index in grid.observe])


def landmarks(grid: TimeGrid) -> list[int]:
    """The indices between which steps are even: both ends and the observed states."""
    return sorted({0, grid.steps, *grid.observe})


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


def _from_steps(begin: Tensor, dt: Tensor, observe: list[int]) -> TimeGrid:
    times = torch.cat([begin, begin + dt.cumsum(-1)], dim=-1)
    return TimeGrid(times, observe, dt=dt)


def _share(times: Tensor, marks: list[int], steps: int) -> list[int]:
    """How many of the steps each part gets, by its length."""
    lengths = [
        (times[..., stop] - times[..., start]).amax().item() for start, stop in pairwise(marks)
    ]
    total = sum(lengths) or 1.0
    return [max(1, math.ceil(steps * length / total - 1e-9)) for length in lengths]
