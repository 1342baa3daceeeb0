"""The built-in flows: gradient flow, heavy ball, and gradient flow towards a regulariser."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.field import Field, GradientField
from odeopt.inner.objective import Objective, add_scaled, is_zero, squared_norm
from odeopt.registry import FIELDS
from odeopt.tools import tree
from odeopt.tools.arguments import Selector, check_selector, select
from odeopt.tools.types import Loss, PyTree


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

    @property
    @override
    def is_slope(self) -> bool:
        """Weight decay is rounded as in torch.optim, and not as part of a potential."""
        return is_zero(self._objective.weight_decay)

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
        gradient = self._objective.gradient(u, hparams, batch)
        force = tree.pytree.tree_map(lambda g, w: -add_scaled(g, w, damping), gradient, v)
        return v, force

    @override
    def readout(self, state: PyTree) -> PyTree:
        return state[0]


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
        distance = squared_norm(tree.pytree.tree_map(torch.sub, state, consts))
        return self._objective.value(state, hparams, batch) + 0.5 * strength * distance

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        strength = select(self._strength, hparams, "strength")
        gradient = self._objective.gradient(state, hparams, batch)
        return tree.pytree.tree_map(
            lambda g, u, c: -add_scaled(g, u - c, strength), gradient, state, consts
        )
