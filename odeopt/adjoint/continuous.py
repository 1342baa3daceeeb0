"""The adjoint differential equation, solved backward on kept states."""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Diagnostics, Interval, LocalAdjoint, Pulled
from odeopt.adjoint.linearize import Differentiation, check_differentiation
from odeopt.errors import CompatibilityError
from odeopt.registry import ADJOINTS
from odeopt.solver.base import Solver, Stepping
from odeopt.solver.dynamics import Linearization, Theta, add_thetas, scale_theta
from odeopt.solver.runge_kutta import (
    RK4,
    Euler,
    ExplicitRungeKutta,
    Midpoint,
    ModifiedEuler,
    combine,
    weighted_sum,
)
from odeopt.tools.shown import shown

INTERPOLATION_ORDER = 4
"""The order of its error in the length of the interval."""


def hermite(interval: Interval, f0: Tensor, f1: Tensor, position: float) -> Tensor:
    r"""The state at $t_0 + \theta h$ from the states and velocities at both ends; shape [d].

    $\tilde y = (1-\theta) y_0 + \theta y_1 + \theta(\theta-1)
    [(1-2\theta)(y_1-y_0) + (\theta-1) h f_0 + \theta h f_1]$, with an error of
    $h^4 \lVert y''''\rVert / 384$.
    """
    _, dt, y0, y1 = interval
    theta, change = position, y1 - y0
    bump = (1 - 2 * theta) * change + ((theta - 1) * dt) * f0 + (theta * dt) * f1
    return y0 + theta * change + (theta * (theta - 1)) * bump


def midpoint_defect(interval: Interval, f0: Tensor, f1: Tensor, f_middle: Tensor) -> Tensor:
    r"""$h\lVert\tilde y'(\tfrac12) - f(\tilde y(\tfrac12))\rVert / \lVert y_1 - y_0\rVert$; 0-dim.

    About $z^4/480$ for a mode that decays at rate $\rho$ with $z = h\rho$: 0.002 at z = 1, 0.4 at
    z = 4 and 1.5 at z = 6.
    """
    change = interval.y1 - interval.y0
    slope = 1.5 * change - (0.25 * interval.dt) * (f0 + f1)
    rounding = torch.finfo(change.dtype).eps ** 0.5
    moved = torch.linalg.vector_norm(change) + rounding * torch.linalg.vector_norm(interval.y1)
    return torch.linalg.vector_norm(slope - interval.dt * f_middle) / (
        moved + torch.finfo(change.dtype).tiny
    )


@final
class ContinuousAdjoint(LocalAdjoint):
    r"""Solves $\lambda' = -f_y^\top\lambda$ backward with a Runge-Kutta method of its own.

    Its target is the gradient of the flow. Under `Every`, `Density` and `Graded` the kept states
    are its mesh and nothing is replayed; under `Binomial` its mesh is the whole grid, replayed.
    Where a stage falls between two nodes the state is interpolated by cubic Hermite, from the
    velocities at the nodes. The error in the gradient is $O(h^{\min(p, 4)})$ for a method of
    order p on mesh width h, if the forward solve is more accurate. Parameters are
    integrated by the same quadrature.

    Cost per mesh interval: one Hessian-vector product per stage (RK4: 4), and with `Midpoint` one
    more gradient. Memory: the mesh and the graphs of at most three velocities.

    Args:
        solver: `Euler()`, `ModifiedEuler()` (the paper's), `Midpoint()` or `RK4()`.
        differentiation: how Hessian-vector products are made, `ReverseMode()` by default.

    Raises:
        CompatibilityError: if the solver is no explicit Runge-Kutta method; from `ODEOptimizer`,
            with an update rule.
        StabilityError: in the gradient, if an interval is too long for the curvature, or the
            states are too far apart to interpolate (see `Safety`).

    References:
        Li et al. 2023, eq. (8) and Algorithm 2; Daulbaev et al. 2020 (interpolated adjoints).
    """

    replays = False

    def __init__(self, solver: Solver, differentiation: Differentiation | None = None) -> None:
        if not isinstance(solver, ExplicitRungeKutta):
            raise CompatibilityError(
                f"ContinuousAdjoint got {shown(solver)}; expected an explicit Runge-Kutta method:"
                " Euler(), ModifiedEuler(), Midpoint() or RK4()."
            )
        self.solver = solver
        self.order = min(solver.order, INTERPOLATION_ORDER)
        self.differentiation = check_differentiation(differentiation)

    @override
    def pull(self, solver: Solver, stepping: Stepping, interval: Interval, lam: Tensor) -> Pulled:
        dt, tableau = interval.dt, self.solver.tableau
        points = _Points(stepping, interval)
        slopes: list[Tensor] = []
        weights: list[float] = []
        used: list[tuple[Tensor, Tensor, Tensor]] = []
        thetas: list[Theta] = []
        for row, weight, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
            slope = combine(row, slopes)
            seed = lam if slope is None else lam + dt * slope
            point = points.at(1.0 - c)
            pulled = point.pullback(seed)
            slopes.append(pulled.y)
            if weight != 0:
                # how the integrand of the objective grows with the length of the interval
                lead = torch.dot(seed, point.value) + (1.0 - c) * dt * pulled.t
                weights.append(weight)
                used.append((pulled.y, pulled.t, lead))
                thetas.append(scale_theta(pulled.theta, weight * dt))
        slope, rate, lead = (weighted_sum(weights, terms) for terms in zip(*used, strict=True))
        diagnostics = Diagnostics(self._step_ratio(lam, slopes[0], dt), points.defect())
        return Pulled(lam + dt * slope, dt * rate, lead, add_thetas(thetas), diagnostics)

    def _step_ratio(self, lam: Tensor, slope: Tensor, dt: Tensor) -> Tensor:
        scale, rate = torch.linalg.vector_norm(lam), torch.linalg.vector_norm(slope)
        tiny = torch.finfo(scale.dtype).tiny
        return dt * rate / ((scale + tiny) * self.solver.stability_limit)

    @override
    def stability_limit(self, solver: Solver) -> float:
        return self.solver.stability_limit

    @override
    def cost(self, solver: Solver) -> Cost:
        positions = {1.0 - c for c in self.solver.tableau.c}
        extra = 0
        if positions - {0.0, 1.0}:  # the velocity at the start is needed before it is pulled back
            extra = self.differentiation.value_cost if 0.0 in positions else 1
        return Cost(gradients=extra, hvps=len(self.solver.tableau.b))


class _Points:
    """Linearisations inside one interval, each made once; position 0 is its start, 1 its end."""

    def __init__(self, stepping: Stepping, interval: Interval) -> None:
        self._stepping, self._interval = stepping, interval
        self._points: dict[float, Linearization] = {}

    def at(self, position: float) -> Linearization:
        """The linearisation at a position, its state interpolated where it is not an end."""
        if position not in self._points:
            t0, dt, y0, y1 = self._interval
            if position in (0.0, 1.0):
                y = y1 if position else y0
            else:
                y = hermite(self._interval, self.at(0.0).value, self.at(1.0).value, position)
            self._points[position] = self._stepping.linearize(t0 + position * dt, y)
        return self._points[position]

    def defect(self) -> Tensor:
        """The relative defect of the interpolant where it was evaluated midway, else 0."""
        if 0.5 not in self._points:
            return torch.zeros_like(self._interval.dt)
        values = [self.at(position).value for position in (0.0, 1.0, 0.5)]
        return midpoint_defect(self._interval, *values)


for _name, _solver in {
    "continuous-euler": Euler,
    "continuous-modified-euler": ModifiedEuler,
    "continuous-midpoint": Midpoint,
    "continuous-rk4": RK4,
}.items():
    ADJOINTS.register(_name)(partial(ContinuousAdjoint, _solver()))
