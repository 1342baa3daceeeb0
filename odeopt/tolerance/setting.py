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
from odeopt.solver.runge_kutta import RK4, Adaptive, Chebyshev2, Chebyshev3, Euler, ModifiedEuler
from odeopt.solver.stabilized import StabilizedRK

FIXED = {
    "euler": Euler(),
    "modified-euler": ModifiedEuler(),
    "chebyshev-2": Chebyshev2(),
    "chebyshev-3": Chebyshev3(),
    "rk4": RK4(),
}
"""Solvers with fixed steps."""

CHOSEN = {"stabilized-rk": StabilizedRK, "adaptive": Adaptive}
"""Solvers that choose their steps from a tolerance."""

RTOL_POWER = 0.6
"""The error in the gradient goes as the tolerance of a step to this power: 2/3 for a method of
order 2 whose steps keep the error per step, and less before that is reached."""

PAIR = 5.0
"""By how much the tolerance of a step differs between the two solves of a pair."""


@dataclass(frozen=True)
class Setting:
    """A solver and how fine it is; the adjoint is the exact one, every state is kept.

    Attributes:
        method: a name in `FIXED` or `CHOSEN`.
        fineness: the number of steps, or one over the tolerance of a step.
    """

    method: str
    fineness: float

    @property
    def solver(self) -> StepSolver:
        """The solver."""
        if self.steps is None:
            return CHOSEN[self.method](1 / self.fineness, 1 / self.fineness)
        return FIXED[self.method]

    @property
    def steps(self) -> int | None:
        """The number of steps; None where the solver chooses it."""
        return None if self.method in CHOSEN else round(self.fineness)

    @property
    def power(self) -> float:
        """The error goes as one over the fineness to this power."""
        return RTOL_POWER if self.steps is None else self.solver.order

    def at(self, fineness: float) -> Setting:
        """The same method, as fine as that."""
        if self.steps is None:
            return replace(self, fineness=max(fineness, 1.0))
        return replace(self, fineness=float(max(1, math.ceil(fineness - 1e-9))))

    def partner(self, spans: int) -> Setting:
        """The finer one of a pair: one step more in each part of a grid, or a finer tolerance."""
        return self.at(self.fineness + spans if self.steps else PAIR * self.fineness)

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
        if self.steps is None:
            return [1] * spans(grid)
        times = grid.times.detach()
        lengths = [
            (times[..., stop] - times[..., start]).amax().item()
            for start, stop in pairwise(landmarks(grid))
        ]
        total = sum(lengths)
        shares = [length / total if total > 0 else 1.0 for length in lengths]
        return [max(1, math.ceil(self.steps * share - 1e-9)) for share in shares]

    def grid(self, grid: TimeGrid) -> TimeGrid:
        """Its grid over the horizon of another one, with the same observed times."""
        return divided(grid, self.parts(grid))

    def __str__(self) -> str:
        name = type(self.solver).__name__
        if self.steps is None:
            return f"{name} with a tolerance of {1 / self.fineness:.1e} a step"
        return f"{name} with {self.steps} steps"


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
    indices = [observe[index] for index in grid.observe]
    begin, dt = times[..., :1], torch.cat(pieces, dim=-1)
    return TimeGrid(torch.cat([begin, begin + dt.cumsum(-1)], dim=-1), indices, dt=dt)


def landmarks(grid: TimeGrid) -> list[int]:
    """The indices between which steps are even: both ends and the observed states."""
    return sorted({0, grid.steps, *grid.observe})


def spans(grid: TimeGrid) -> int:
    """How many parts of a grid have even steps."""
    return len(landmarks(grid)) - 1


def gather_dt(g_dt: Tensor, inner: TimeGrid, outer: TimeGrid) -> Tensor:
    """Gradients w.r.t. the steps of the outer grid, from those w.r.t. the steps of the inner one.

    Each step of a part of the grid takes the same share of the part's length.
    """
    pieces: list[Tensor] = []
    pairs = zip(pairwise(landmarks(inner)), pairwise(landmarks(outer)), strict=True)
    for (a, b), (c, d) in pairs:
        share = g_dt[..., a:b].mean(-1, keepdim=True)
        pieces.append(share.expand(*share.shape[:-1], d - c))
    return torch.cat(pieces, dim=-1)


def horizon(grid: TimeGrid) -> float:
    """The longest horizon of a task."""
    return (grid.times[..., -1] - grid.times[..., 0]).detach().amax().item()
