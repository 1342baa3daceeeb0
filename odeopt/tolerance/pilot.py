"""What a few gradients at the start tell of a flow, before anything is solved."""

from __future__ import annotations

from typing import NamedTuple

import torch

from odeopt.kernels import Kernels
from odeopt.problem import Problem
from odeopt.stats import Stats
from odeopt.sweep.power import PowerIteration
from odeopt.tolerance.setting import longest

AT_ONCE = 1.2
r"""$\rho T$ up to which, by the first of the power iterations, no more of them are made."""

ANY, ROUGH, CLOSE = 1.0, 0.1, 0.02
"""To what share the spectral radius is estimated: at first; in general, since it changes by more on
the way; and where it does not change."""

WORTH_ASKING = 12.0
r"""$\rho T$ from which on it pays to ask whether the velocity is affine."""

AFFINE = 1e-3
"""Up to this relative difference of two changes of the velocity it is taken for affine."""


class Pilot(NamedTuple):
    r"""What is known of a flow before it is solved.

    Attributes:
        stiffness: $\rho T$ at the start, at most over the tasks.
        affine: whether the velocity is affine in the state as far as one can see, so that
            $\rho$ stays what it is: that of a linear model with a quadratic loss. It is asked of
            real spectra only, whose stable steps are known.
        real_spectrum: whether the Jacobian is symmetric.
    """

    stiffness: float
    affine: bool = False
    real_spectrum: bool = True


def pilot(kernels: Kernels, problem: Problem, stats: Stats, real_spectrum: bool = True) -> Pilot:
    """Look at the start of a flow; cost: some 4 gradients, 2 to 15 more where they pay."""
    with torch.no_grad():
        look = _Look(kernels, problem, stats)
        stiffness = look.stiffness(ANY)
        if stiffness >= AT_ONCE:
            stiffness = look.stiffness(ROUGH)
        affine = real_spectrum and stiffness >= WORTH_ASKING and look.affine()
        if affine:
            stiffness = look.stiffness(CLOSE)
        return Pilot(stiffness, affine, real_spectrum)


class _Look:
    """The velocity at the start and near it."""

    def __init__(self, kernels: Kernels, problem: Problem, stats: Stats) -> None:
        self._velocity, self._y, self._grid = kernels.velocity(), problem.y0, problem.grid
        self._t = problem.grid.times[..., 0].to(problem.y0.dtype)
        self._stats = stats
        self._slope = self._velocity(self._t, self._y)
        stats.gradient_evaluations += 1
        self._power = PowerIteration(self._velocity, stats, self._slope)
        self._radius = torch.zeros_like(self._t)

    def stiffness(self, accuracy: float) -> float:
        r"""$\rho T$, at most over the tasks; the iteration goes on from where it ended."""
        self._power.accuracy = accuracy
        everyone = torch.ones_like(self._radius, dtype=torch.bool)
        self._radius = self._power.estimate(self._t, self._y, self._slope, self._radius, everyone)
        return longest(self._grid, self._radius)

    def affine(self) -> bool:
        r"""Whether a step of $2 / \rho$ changes the velocity twice as much as one of $1 / \rho$."""
        h = 1 / self._radius.clamp(min=torch.finfo(self._radius.dtype).tiny)
        step = h[..., None] * self._slope
        once, twice = (self._velocity(self._t, self._y + k * step) - self._slope for k in (1, 2))
        self._stats.gradient_evaluations += 2
        gap = torch.linalg.vector_norm(twice - 2 * once, dim=-1)
        return bool((gap <= AFFINE * torch.linalg.vector_norm(twice, dim=-1)).all())
