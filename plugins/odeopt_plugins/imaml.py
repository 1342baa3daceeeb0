"""iMAML: a regularised inner problem, and the gradient of its minimiser."""

from __future__ import annotations

from typing_extensions import Unpack

import odeopt
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings
from odeopt_plugins.newton_cg import NewtonCG


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
    return inner_loop(field, odeopt.Euler(), adjoint, None, grid, outer_loss or loss, **settings)


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
    Memory: one state.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        steps: Newton steps.
        strength: $\mu$.
        cg_steps: conjugate-gradient steps, of each Newton direction and of the meta-gradient.
        damping: added to the Hessian in the meta-gradient.
        stationarity: when to warn that the inner problem has not converged.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients" (Hessian-free variant).
    """
    field = odeopt.RegularizedFlow(loss, strength)
    adjoint = odeopt.ImplicitAdjoint(odeopt.ConjugateGradient(cg_steps), damping, stationarity)
    grid = odeopt.TimeGrid.from_lr(1.0, steps)
    solver = NewtonCG(cg_steps)
    return inner_loop(field, solver, adjoint, None, grid, outer_loss or loss, **settings)


odeopt.METHODS.register("imaml-gd", example=lambda loss: imaml_gd(loss, lr=0.05, steps=40))(
    imaml_gd
)
odeopt.METHODS.register("imaml-hf", example=imaml_hf)(imaml_hf)
