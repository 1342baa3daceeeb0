"""The heavy ball: gradient flow with inertia."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt import tree
from odeopt.calls import Selector, check_selector, select
from odeopt.field.base import Field
from odeopt.field.objective import Objective, add_scaled, map_pairs
from odeopt.registry import FIELDS
from odeopt.types import Loss, PyTree


@final
@FIELDS.register("heavy-ball", example=lambda loss: HeavyBall(loss, damping=1.5))
class HeavyBall(Field):
    r"""$u' = v,\quad v' = -\gamma v - \nabla L(u) - w u$, started at rest.

    The state is the pair (u, v); `readout` gives u. Its Jacobian is not symmetric and its
    eigenvalues may be complex. Cost: one gradient per velocity, twice the memory of gradient flow.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor.
        damping: $\gamma$, a number or a selector.
        weight_decay: w, a number or a selector.
        has_aux: the loss returns (scalar, anything); the second part is dropped.

    Raises:
        InputError: if the loss is no function.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Polyak 1964, "Some methods of speeding up the convergence of iteration methods".
    """

    def __init__(
        self,
        loss: Loss,
        damping: Selector,
        weight_decay: Selector = 0.0,
        has_aux: bool = False,
    ) -> None:
        self._objective = Objective(loss, weight_decay, has_aux)
        self._damping = check_selector(damping, "damping")

    @override
    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        return (params, tree.map_tensors(torch.zeros_like, params)), ()

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        u, v = state
        damping = select(self._damping, hparams, "damping")
        force = map_pairs(
            lambda g, w: add_scaled(g, w, damping), self._objective.gradient(u, hparams, batch), v
        )
        return v, tree.map_tensors(torch.neg, force)

    @override
    def readout(self, state: PyTree) -> PyTree:
        return state[0]
