"""What a few gradients at the start tell of a flow, before anything is solved."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odeopt.engine.kernels import Kernels
from odeopt.engine.problem import Problem
from odeopt.engine.stats import Stats
from odeopt.tolerance.krylov import Krylov
from odeopt.tolerance.setting import longest

AT_ONCE, FEW = 1.2, 8.0
r"""$\rho T$ up to which one product with the Jacobian does, and up to which a rough estimate does:
there each evaluation counts."""

ROUGH, CLOSE = 0.1, 0.02
"""The relative change of a rough estimate, and of others, from which on it is believed."""

FEWEST, MOST = 4, 12
"""So many products are made at least for one that is not rough, and so many for any."""

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
    """Look at the start of a flow.

    Cost: 2 to 7 gradients in most cases, 2 more where they pay. Memory: a state per gradient.
    """
    with torch.no_grad():
        look = _Look(kernels, problem, stats)
        stiffness = look.stiffness(real_spectrum)
        affine = real_spectrum and stiffness >= WORTH_ASKING and look.affine()
        return Pilot(stiffness, affine, real_spectrum)


class _Look:
    """The velocity at the start and near it."""

    def __init__(self, kernels: Kernels, problem: Problem, stats: Stats) -> None:
        self._kernel, self._y, self._grid = kernels.velocity(), problem.y0, problem.grid
        self._t = problem.grid.times[..., 0].to(problem.y0.dtype)
        self._stats = stats
        self._slope = self._velocity(self._y)
        self._radius = torch.zeros_like(self._t)

    def stiffness(self, symmetric: bool) -> float:
        r"""$\rho T$, at most over the tasks."""
        krylov, found = Krylov(self._velocity, self._y, self._slope, symmetric), 0.0
        for products in range(1, MOST + 1):
            self._radius, before = krylov.extend(), found
            found = longest(self._grid, self._radius)
            if _is_close(before, found, products):
                break
        return found

    def _velocity(self, y: Tensor) -> Tensor:
        self._stats.gradient_evaluations += 1
        return self._kernel(self._t, y)

    def affine(self) -> bool:
        r"""Whether a step of $2 / \rho$ changes the velocity twice as much as one of $1 / \rho$."""
        h = 1 / self._radius.clamp(min=torch.finfo(self._radius.dtype).tiny)
        step = h[..., None] * self._slope
        once, twice = (self._velocity(self._y + k * step) - self._slope for k in (1, 2))
        gap = torch.linalg.vector_norm(twice - 2 * once, dim=-1)
        return bool((gap <= AFFINE * torch.linalg.vector_norm(twice, dim=-1)).all())


def _is_close(before: float, found: float, products: int) -> bool:
    r"""Whether no more products are needed for $\rho T$, by what one fewer told."""
    if products == 1:
        return found < AT_ONCE
    fewest, change = (2, ROUGH) if found < FEW else (FEWEST, CLOSE)
    return products >= fewest and abs(found - before) <= change * found
