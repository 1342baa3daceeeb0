"""First-order MAML: gradient descent, not differentiated."""

from __future__ import annotations

from typing_extensions import Unpack

import odeopt
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings


@known_settings
def fomaml(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 5,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    r"""$\theta - \eta\,\mathrm{mean}_n\nabla L_n^{val}(\psi_n)$, the gradient at the end.

    Cost: one gradient per step. Memory: one state.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the inner learning rate.
        steps: inner steps.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Finn et al. 2017, "Model-Agnostic Meta-Learning", section 5.2.
    """
    grid = odeopt.TimeGrid.from_lr(lr, steps)
    field, adjoint = odeopt.GradientFlow(loss), odeopt.FirstOrderAdjoint()
    return inner_loop(field, odeopt.Euler(), adjoint, None, grid, outer_loss or loss, **settings)


odeopt.METHODS.register("fomaml", example=lambda loss: fomaml(loss, lr=0.05))(fomaml)
