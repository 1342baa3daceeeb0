"""Solving state and adjoint backward together, with nothing kept."""

from __future__ import annotations

from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Sweep, Swept, WholeAdjoint
from odeopt.adjoint.linearize import Differentiation, check_differentiation
from odeopt.errors import CompatibilityError
from odeopt.registry import ADJOINTS
from odeopt.solver.base import Solver, Stepping
from odeopt.solver.dynamics import Theta, add_thetas, scale_theta
from odeopt.solver.runge_kutta import RK4, ExplicitRungeKutta, combine, weighted_sum
from odeopt.tools.shown import shown


class _Back(NamedTuple):
    y: Tensor
    lam: Tensor
    t: Tensor
    dt: Tensor
    theta: Theta


@final
@ADJOINTS.register("backsolve")
class BacksolveAdjoint(WholeAdjoint):
    r"""Solves $y' = f$ and $\lambda' = -f_y^\top\lambda$ backward from T together. Not recommended.

    Backward in time a decaying mode $e^{-\rho t}$ grows like $e^{\rho (T - t)}$, and with it every
    rounding error of the state: on the CosMixture regression problem the gradient has lost all
    its digits by T = 20 in float64 (`docs/choosing.md` has the figures). It is here for
    comparison. Memory: no state but the last. Cost: one Hessian-vector product per stage.

    Args:
        solver: an explicit Runge-Kutta method, `RK4()` by default, on the grid of the solve.
        differentiation: how Hessian-vector products are made, `ReverseMode()` by default.

    Raises:
        CompatibilityError: if the solver is no explicit Runge-Kutta method; from `ODEOptimizer`,
            with an update rule.
        StabilityError: in the gradient, if the initial state is missed (see `Safety`).

    References:
        Chen et al. 2018, "Neural Ordinary Differential Equations", Algorithm 1.
    """

    def __init__(
        self, solver: Solver | None = None, differentiation: Differentiation | None = None
    ) -> None:
        chosen = RK4() if solver is None else solver
        if not isinstance(chosen, ExplicitRungeKutta):
            raise CompatibilityError(
                f"BacksolveAdjoint got {shown(chosen)}; expected an explicit Runge-Kutta method,"
                " e.g. RK4()."
            )
        self.solver = chosen
        self.differentiation = check_differentiation(differentiation)

    @override
    def backward(self, sweep: Sweep, lam: Tensor) -> tuple[Swept, Cost]:
        times = sweep.times.unbind(-1)
        kernel = sweep.batched(self._interval(sweep))
        y, start = sweep.y_end, _largest_seed(lam, sweep)
        g_t: list[Tensor] = []
        g_dt: list[Tensor] = []
        theta: Theta | None = None
        growth = torch.ones_like(start)
        for k in reversed(range(len(times) - 1)):
            back: _Back = kernel(
                times[k + 1], times[k + 1] - times[k], y, lam, sweep.theta, sweep.data
            )
            y, lam = back.y, back.lam
            if k in sweep.cotangents:
                lam = lam + sweep.cotangents[k]
            g_t.append(back.t)
            g_dt.append(back.dt)
            theta = back.theta if theta is None else add_thetas([theta, back.theta])
            growth = torch.maximum(growth, torch.linalg.vector_norm(lam, dim=-1) / start)
        steps = len(times) - 1
        mismatch = _mismatch(y, sweep)
        swept = Swept(lam, _stack(g_t, times[0]), _stack(g_dt, times[0]), theta, growth, mismatch)
        return swept, Cost(gradients=0, hvps=steps * len(self.solver.tableau.b))

    def _interval(self, sweep: Sweep) -> Any:
        tableau = self.solver.tableau

        def back(t: Tensor, dt: Tensor, y: Tensor, lam: Tensor, theta: Theta, data: Any) -> _Back:
            stepping: Stepping = sweep.stepping(theta, data)
            points: list[Tensor] = []
            pulls: list[Tensor] = []
            rates: list[Tensor] = []
            leads: list[Tensor] = []
            thetas: list[Theta] = []
            for row, b, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
                slope, pull = combine(row, points), combine(row, pulls)
                seed = lam if pull is None else lam + dt * pull
                point = stepping.linearize(t - c * dt, y if slope is None else y - dt * slope)
                pulled = point.pullback(seed)
                points.append(point.value)
                pulls.append(pulled.y)
                rates.append(pulled.t)
                leads.append(torch.dot(seed, point.value) + (1 - c) * dt * pulled.t)
                thetas.append(scale_theta(pulled.theta, b * dt))
            y_back = y - dt * weighted_sum(tableau.b, points)
            lam_back = lam + dt * weighted_sum(tableau.b, pulls)
            rate, lead = dt * weighted_sum(tableau.b, rates), weighted_sum(tableau.b, leads)
            return _unless_frozen(
                dt, y, lam, _Back(y_back, lam_back, rate, lead, add_thetas(thetas))
            )

        return back


def _unless_frozen(dt: Tensor, y: Tensor, lam: Tensor, back: _Back) -> _Back:
    """An interval of zero length is the identity, even where the velocity is not finite."""

    def zero(leaf: Tensor) -> Tensor:
        return torch.where(dt > 0, leaf, torch.zeros_like(leaf))

    return _Back(
        torch.where(dt > 0, back.y, y),
        torch.where(dt > 0, back.lam, lam),
        zero(back.t),
        torch.where(torch.isfinite(back.dt) | (dt > 0), back.dt, torch.zeros_like(dt)),
        Theta(*(tuple(zero(leaf) for leaf in part) for part in back.theta)),
    )


def _largest_seed(lam: Tensor, sweep: Sweep) -> Tensor:
    seeds = torch.stack([lam, *sweep.cotangents.values()])
    norm = torch.linalg.vector_norm(seeds, dim=-1).amax(0)
    return norm.clamp(min=torch.finfo(norm.dtype).tiny)


def _mismatch(y: Tensor, sweep: Sweep) -> Tensor:
    way = torch.linalg.vector_norm(sweep.y_end - sweep.y0, dim=-1)
    rounding = torch.finfo(y.dtype).eps ** 0.5 * torch.linalg.vector_norm(sweep.y0, dim=-1)
    missed = torch.linalg.vector_norm(y - sweep.y0, dim=-1)
    return missed / (way + rounding).clamp(min=torch.finfo(y.dtype).tiny)


def _stack(backward: list[Tensor], like: Tensor) -> Tensor:
    """Values of steps n-1, ..., 0 in the order of the steps, shape [..., n]."""
    if not backward:
        return like.new_zeros((*like.shape, 0))
    return torch.stack(backward[::-1], dim=-1)
