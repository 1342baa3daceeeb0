"""Gradient flow with a proximal term."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor
from typing_extensions import override

from odeopt import tree
from odeopt.calls import Selector, check_selector, select
from odeopt.errors import InputError
from odeopt.field.base import GradientField
from odeopt.field.objective import Objective, add_scaled, map_pairs, squared_norm
from odeopt.registry import FIELDS
from odeopt.types import Loss, PyTree


@final
@FIELDS.register("regularized-flow", example=lambda loss: RegularizedFlow(loss, strength=0.5))
class RegularizedFlow(GradientField):
    r"""$u' = -\nabla L(u) - w u - \mu (u - c)$: the flow of $L + \tfrac{\mu}{2}\lVert u-c\rVert^2$.

    The centre c is the initialisation unless another is chosen; gradients flow to it, and to
    $\mu$ when it is a selector of hparams. Cost: one gradient per velocity.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor.
        strength: $\mu$, a number or a selector.
        center: a selector of hparams that returns a tree like params; default: the initialisation.
        weight_decay: w, a number or a selector.
        has_aux: the loss returns (scalar, anything); the second part is dropped.

    Raises:
        InputError: if the loss or the centre is no function.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Rajeswaran et al. 2019, "Meta-Learning with Implicit Gradients", eq. (3).
    """

    def __init__(
        self,
        loss: Loss,
        strength: Selector,
        center: Callable[[PyTree], PyTree] | None = None,
        weight_decay: Selector = 0.0,
        has_aux: bool = False,
    ) -> None:
        self._objective = Objective(loss, weight_decay, has_aux)
        self._strength = check_selector(strength, "strength")
        if center is not None and not callable(center):
            raise InputError(
                "center is not a function; expected a selector, e.g. lambda hparams:"
                " hparams['center'], with the centre passed in hparams."
            )
        self._center = center

    @override
    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        if self._center is None:
            return params, params
        center = select(self._center, hparams, "center")
        layout = tree.ravel(params, "params")[1]
        layout.flatten(center, "center")  # checks that it is laid out like params
        return params, center

    @override
    def potential(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> Tensor:
        strength = select(self._strength, hparams, "strength")
        distance = squared_norm(_difference(state, consts))
        return self._objective.value(state, hparams, batch) + 0.5 * strength * distance

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        strength = select(self._strength, hparams, "strength")
        gradient = self._objective.gradient(state, hparams, batch)
        pull = _difference(state, consts)
        return tree.map_tensors(
            Tensor.neg, map_pairs(lambda g, d: add_scaled(g, d, strength), gradient, pull)
        )


def _difference(state: PyTree, center: PyTree) -> PyTree:
    return map_pairs(lambda u, c: u - c, state, center)
