"""A solver with a resolution: what there is to choose from."""

from __future__ import annotations

import math
from collections.abc import Sequence
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

PAIR = 1.5
"""How many times as many steps the finer setting of a pair has."""

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
    def partner(self) -> Setting:
        """What fixed steps are compared with; the stabilised solver has an estimate of its own."""
        if self.method == STABILIZED:
            return self
        return replace(self, fineness=float(math.ceil(PAIR * round(self.fineness))))

    def parts(self, grid: TimeGrid) -> list[int]:
        """The numbers of steps between the ends and the observed states of a grid."""
        marks = landmarks(grid)
        if self.steps is None:
            return [1] * (len(marks) - 1)
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
