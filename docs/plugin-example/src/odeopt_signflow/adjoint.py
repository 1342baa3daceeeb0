"""The adjoint: between first order and exact."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

import odeopt
from odeopt.adjoint import Interval, LocalAdjoint, Pulled
from odeopt.adjoint.base import Cost, Diagnostics
from odeopt.solver.base import Solver, Stepping, StepSolver


@final
@odeopt.ADJOINTS.register("damped", example=lambda: DampedAdjoint(0.5))
class DampedAdjoint(LocalAdjoint):
    r"""$\lambda_k = \lambda_{k+1} + \gamma\,(S_k^\top \lambda_{k+1} - \lambda_{k+1})$.

    $S_k$ is the Jacobian of step k, so that $\gamma = 1$ is the exact adjoint and $\gamma = 0$
    takes every step for the identity. As steps get short this becomes
    $\lambda' = -\gamma J^\top \lambda$: what the inner Jacobian J does to $\lambda$ by the time T,
    the exact adjoint would do by the time $\gamma T$, whatever the number of steps. Where
    $\lambda$ grows like $e^{\mu T}$ it grows like $e^{\gamma\mu T}$ only, and where it
    dies out it does so later.

    The price: for $\gamma < 1$ this is not the gradient of anything, and the bias does not go away
    with shorter steps. It is small while $(1 - \gamma) T \lVert J \rVert$ is. Gradients w.r.t.
    hyperparameters and step sizes are exact for each step, given the damped $\lambda$.

    Cost: as the exact adjoint, one Hessian-vector product per stage and the replayed steps (for
    $\gamma = 0$ the same direction is free with `odeopt.FirstOrderAdjoint`, but for hyperparameters
    and step sizes). Memory: as the exact adjoint, the kept states and the graph of one step.

    Args:
        gamma: from 0 to 1; a fixed number, since the adjoint itself is not differentiated.
    """

    replays = True
    consistent = False

    def __init__(self, gamma: float) -> None:
        if not 0 <= gamma <= 1:
            raise odeopt.InputError(f"gamma is {gamma!r}; expected a number from 0 to 1.")
        self.gamma = gamma

    @override
    def check(self, solver: Solver) -> None:
        _as_step_solver(solver)

    @override
    def pull(self, solver: Solver, stepping: Stepping, interval: Interval, lam: Tensor) -> Pulled:
        t, dt, y0, _ = interval
        step = _as_step_solver(solver).pull(stepping, t, dt, y0, lam)
        damped = torch.lerp(lam, step.lam, self.gamma)
        zero = torch.zeros_like(dt)
        return Pulled(damped, step.t, step.dt, step.theta, Diagnostics(zero, zero))

    @override
    def cost(self, solver: Solver) -> Cost:
        return Cost(gradients=0, hvps=_as_step_solver(solver).stages)


def _as_step_solver(solver: Solver) -> StepSolver:
    if not isinstance(solver, StepSolver):
        raise odeopt.CompatibilityError(
            f"DampedAdjoint cannot replay {type(solver).__name__}, which chooses its own steps;"
            " use it with a step solver such as Euler() or RK4()."
        )
    return solver
