"""A-MAML: the flow, solved accurately, and its adjoint equation on states kept in between."""

from __future__ import annotations

from typing_extensions import Unpack

import odeopt
from odeopt.solver import Solver
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings


@known_settings
def a_maml(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 100,
    states: int | None = None,
    solver: Solver | None = None,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    r"""The gradient of the flow $u' = -\nabla L$ up to the horizon $T = lr \cdot steps$.

    Algorithms 1 and 2 of the paper: a Dormand-Prince solve whose states are kept every
    $h = T / states$, and the adjoint equation $\lambda' = \nabla^2 L\,\lambda$ solved backward on
    them with modified Euler. The error is $O(h^2)$; the stability guard refuses h that is too
    long for the curvature. Cost: the gradients that the tolerances ask for and two Hessian-vector
    products per state. Memory: the kept states and the graphs of two gradients.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the learning rate of the gradient descent that the flow stands for.
        steps: its steps.
        states: how many states are kept; `steps` by default, which is the paper's choice.
        solver: the forward solver; `DormandPrince(rtol=1e-5, atol=1e-7)` by default, in which
            tasks share their steps (so that a task's gradient depends on the others by about the
            tolerance). With horizons of each task's own, `Adaptive(rtol, atol)`.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Li et al. 2023, "Meta-Learning with Adjoint Methods".
    """
    grid = odeopt.TimeGrid.uniform(lr * steps, steps if states is None else states)
    chosen = odeopt.DormandPrince(rtol=1e-5, atol=1e-7) if solver is None else solver
    adjoint = odeopt.ContinuousAdjoint(odeopt.ModifiedEuler())
    field = odeopt.GradientFlow(loss)
    return inner_loop(field, chosen, adjoint, grid, outer_loss or loss, **settings)


odeopt.METHODS.register(
    "a-maml",
    example=lambda loss: a_maml(loss, lr=0.05, steps=20, solver=odeopt.DormandPrince(1e-11, 1e-13)),
)(a_maml)
