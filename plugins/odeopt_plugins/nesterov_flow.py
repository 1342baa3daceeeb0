"""The continuous limit of Nesterov's accelerated gradient method."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.inner import Field
from odeopt.inner.objective import Objective
from odeopt.registry import FIELDS
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


@final
@FIELDS.register("nesterov-flow", example=lambda loss: NesterovFlow(loss, shift=0.5))
class NesterovFlow(Field):
    r"""$u' = v,\quad v' = -\frac{3}{t + t_0} v - \nabla L(u)$, started at rest.

    The damping fades with time, so that the field depends on t. The shift $t_0$ keeps it finite
    at the start. The state is the pair (u, v); one gradient per velocity.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor.
        shift: $t_0 > 0$.
        has_aux: the loss returns (scalar, anything); the second part is dropped.

    References:
        Su, Boyd and Candès 2016, "A Differential Equation for Modeling Nesterov's Accelerated
        Gradient Method", eq. (3).
    """

    def __init__(self, loss: Loss, shift: float = 1.0, has_aux: bool = False) -> None:
        self._objective = Objective(loss, has_aux=has_aux)
        self._shift = shift

    @override
    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        return (params, tree.map_tensors(torch.zeros_like, params)), ()

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        u, v = state
        damping = 3.0 / (t + self._shift)
        gradient = self._objective.gradient(u, hparams, batch)
        return v, tree.pytree.tree_map(lambda w, g: -damping * w - g, v, gradient)

    @override
    def readout(self, state: PyTree) -> PyTree:
        return state[0]
