"""MAML: gradient descent, differentiated exactly, through its last steps only, or not at all."""

from __future__ import annotations

from typing_extensions import Unpack

import odeopt
from odeopt.adjoint import Adjoint
from odeopt.checkpoint import CheckpointSchedule
from odeopt_plugins.common import Loss, Settings, inner_loop, known_settings


@known_settings
def maml(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 5,
    checkpoints: CheckpointSchedule | None = None,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    r"""$\theta - \eta\,\mathrm{mean}_n\nabla_\theta L_n^{val}(\psi_n(\theta))$, exactly.

    $\psi_n$ is the end of K steps of gradient descent. Cost: K gradients and K Hessian-vector
    products. Memory: K states, or fewer with other checkpoints, and the graph of one step.

    Args:
        loss: the training loss.
        outer_loss: the validation loss; the training loss by default.
        lr: the inner learning rate.
        steps: K.
        checkpoints: which states are kept, e.g. `Binomial(20)`; by default all if memory allows.
        **settings: see `odeopt_plugins.common.Settings`.

    References:
        Finn et al. 2017, "Model-Agnostic Meta-Learning".
    """
    return _descent(loss, outer_loss, odeopt.DiscreteAdjoint(), lr, steps, checkpoints, **settings)


@known_settings
def maml_1(
    loss: Loss, outer_loss: Loss | None = None, *, lr: float = 0.01, **settings: Unpack[Settings]
) -> odeopt.InnerLoop:
    """MAML with one inner step.

    Cost: one gradient and one Hessian-vector product. Arguments as for `maml`.
    """
    return maml(loss, outer_loss, lr=lr, steps=1, **settings)


@known_settings
def truncated_maml(
    loss: Loss,
    outer_loss: Loss | None = None,
    *,
    lr: float = 0.01,
    steps: int = 5,
    last: int = 1,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    """MAML differentiated through its last steps only, the others taken for the identity.

    Cost: as many gradients as steps, as many Hessian-vector products as `last`, the number of steps
    that are differentiated. Memory: `last` states. Other arguments as for `maml`.

    References:
        Shaban et al. 2019, "Truncated Back-propagation for Bilevel Optimization".
    """
    return _descent(loss, outer_loss, odeopt.TruncatedAdjoint(last), lr, steps, **settings)


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

    Cost: one gradient per step. Memory: one state. Arguments as for `maml`.

    References:
        Finn et al. 2017, "Model-Agnostic Meta-Learning", section 5.2.
    """
    return _descent(loss, outer_loss, odeopt.FirstOrderAdjoint(), lr, steps, **settings)


def _descent(
    loss: Loss,
    outer_loss: Loss | None,
    adjoint: Adjoint,
    lr: float,
    steps: int,
    checkpoints: CheckpointSchedule | None = None,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    """Gradient descent with the adjoint that makes the difference."""
    field, grid = odeopt.GradientFlow(loss), odeopt.TimeGrid.from_lr(lr, steps)
    outer = outer_loss or loss
    return inner_loop(field, odeopt.Euler(), adjoint, grid, outer, checkpoints, **settings)


odeopt.METHODS.register("maml", example=lambda loss: maml(loss, lr=0.05))(maml)
odeopt.METHODS.register("maml-1", example=lambda loss: maml_1(loss, lr=0.05))(maml_1)
odeopt.METHODS.register("truncated-maml", example=lambda loss: truncated_maml(loss, lr=0.05))(
    truncated_maml
)
odeopt.METHODS.register("fomaml", example=lambda loss: fomaml(loss, lr=0.05))(fomaml)
