"""iMAML: a regularised inner problem, and the gradient of its minimiser."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import Unpack, override

import odeopt
from odeopt.solver import StepSolver
from odeopt.tools.types import Velocity
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings


@final
class NewtonCG(StepSolver):
    r"""$u \leftarrow u + dt\,\alpha p$ with $\nabla^2\Phi(u)\,p \approx -\nabla\Phi(u)$.

    p comes from a few conjugate-gradient steps. $\alpha \in \{1, 1/2, 1/4, ...\}$ is the largest
    at which $\Phi$ still falls along p or is flat, so that a convex $\Phi$ decreases; 0 if there
    is none. A minimiser, not an integrator of the flow; for gradient fields only. Cost per step:
    `steps` Hessian-vector products and `halvings + 2` gradients.

    Args:
        steps: conjugate-gradient steps per direction.
        halvings: how often the step may be halved.

    References:
        Martens 2010, "Deep learning via Hessian-free optimization"; Nocedal and Wright 2006,
        section 7.1.
    """

    order = 1
    stability_limit = float("inf")

    def __init__(self, steps: int = 5, halvings: int = 10) -> None:
        self._solver = odeopt.ConjugateGradient(steps)
        self._halvings = halvings
        self.stages = 1 + steps + halvings + 1

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        slope: Tensor
        slope, pullback = torch.func.vjp(lambda u: velocity(t, u), y)[:2]
        direction = self._solver.solve(lambda v: -pullback(v)[0], slope)
        return y + dt * self._length(velocity, t, y, direction, slope) * direction

    def _length(
        self, velocity: Velocity, t: Tensor, y: Tensor, direction: Tensor, slope: Tensor
    ) -> Tensor:
        start = torch.dot(slope, direction)
        flat = -(torch.finfo(start.dtype).eps ** 0.5) * start
        length = torch.zeros_like(start)
        for halving in reversed(range(self._halvings + 1)):
            trial = 0.5**halving
            descent = torch.dot(velocity(t, y + trial * direction), direction)
            length = torch.where(descent >= flat, torch.full_like(length, trial), length)
        return length


@known_settings
def imaml_gd(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 100,
    strength: float = 1.0,
    cg_steps: int = 5,
    damping: float = 0.0,
    stationarity: float | None = 0.1,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    r"""$(I + \nabla^2 L(\varphi)/\mu)^{-1}\nabla L^{val}(\varphi)$; $\varphi$ by gradient descent.

    $\varphi$ minimises $L(u) + \tfrac{\mu}{2}\lVert u - \theta\rVert^2$. A warning says when it
    does not: the gradient is then wrong. Cost: one gradient per step and `cg_steps + 1`
    Hessian-vector products. Memory: one state.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the inner learning rate.
        steps: inner steps.
        strength: $\mu$.
        cg_steps: conjugate-gradient steps of the linear solve.
        damping: added to the Hessian.
        stationarity: when to warn that the inner problem has not converged
            (see `ImplicitAdjoint`).
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients".
    """
    field = odeopt.RegularizedFlow(loss, strength)
    adjoint = odeopt.ImplicitAdjoint(odeopt.ConjugateGradient(cg_steps), damping, stationarity)
    grid = odeopt.TimeGrid.from_lr(lr, steps)
    return inner_loop(field, odeopt.Euler(), adjoint, grid, outer_loss or loss, **settings)


@known_settings
def imaml_hf(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    steps: int = 5,
    strength: float = 1.0,
    cg_steps: int = 5,
    damping: float = 0.0,
    stationarity: float | None = 0.1,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    r"""IMAML whose inner problem is minimised by Hessian-free (Newton-CG) steps.

    Cost per inner step: `cg_steps` Hessian-vector products and the gradients of a line search.
    Memory: one state. Arguments as for `imaml_gd`, but there is no learning rate, and each Newton
    direction takes `cg_steps` conjugate-gradient steps, as the meta-gradient does.

    References:
        Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients" (Hessian-free variant).
    """
    field = odeopt.RegularizedFlow(loss, strength)
    adjoint = odeopt.ImplicitAdjoint(odeopt.ConjugateGradient(cg_steps), damping, stationarity)
    grid = odeopt.TimeGrid.from_lr(1.0, steps)
    return inner_loop(field, NewtonCG(cg_steps), adjoint, grid, outer_loss or loss, **settings)


odeopt.METHODS.register("imaml-gd", example=lambda loss: imaml_gd(loss, lr=0.05, steps=40))(
    imaml_gd
)
odeopt.METHODS.register("imaml-hf", example=imaml_hf)(imaml_hf)
