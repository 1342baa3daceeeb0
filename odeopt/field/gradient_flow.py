"""Gradient flow, the continuous limit of gradient descent."""

from __future__ import annotations

from typing import final

from torch import Tensor
from typing_extensions import override

from odeopt import tree
from odeopt.calls import Selector
from odeopt.field.base import GradientField
from odeopt.field.objective import Objective
from odeopt.registry import FIELDS
from odeopt.types import Loss, PyTree


@final
@FIELDS.register("gradient-flow", example=lambda loss: GradientFlow(loss, weight_decay=0.1))
class GradientFlow(GradientField):
    r"""$u' = -\nabla L(u) - w u$.

    With `Euler` and a grid `from_lr` it is gradient descent, bit-equal to `torch.optim.SGD` in
    float64. Cost: one gradient per velocity.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor.
        weight_decay: w, a number or a selector of hparams.
        has_aux: the loss returns (scalar, anything); the second part is dropped.

    Raises:
        InputError: if the loss is no function.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Li et al. 2023, "Meta-Learning with Adjoint Methods", eq. (3).
    """

    def __init__(self, loss: Loss, weight_decay: Selector = 0.0, has_aux: bool = False) -> None:
        self._objective = Objective(loss, weight_decay, has_aux)

    @override
    def potential(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> Tensor:
        return self._objective.value(state, hparams, batch)

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        return tree.map_tensors(Tensor.neg, self._objective.gradient(state, hparams, batch))
