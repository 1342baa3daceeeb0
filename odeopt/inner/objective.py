"""The training loss as every gradient-based field uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from odeopt.errors import InputError
from odeopt.tools import autodiff, tree
from odeopt.tools.arguments import Selector, call_loss, check_scalar, check_selector, select
from odeopt.tools.shown import shown
from odeopt.tools.types import Loss, PyTree


@dataclass(frozen=True, eq=False)
class Objective:
    r"""$L(u) + \tfrac{w}{2}\lVert u\rVert^2$: a loss with weight decay w.

    Args:
        loss: `loss(params, batch)` or `loss(params, batch, hparams)`, a scalar tensor; with
            `has_aux`, a pair (scalar, anything).
        weight_decay: a number or a selector.
        has_aux: whether the loss returns a pair; its second part is dropped.
    """

    loss: Loss
    weight_decay: Selector = 0.0
    has_aux: bool = False

    def __post_init__(self) -> None:
        if not callable(self.loss):
            raise InputError(
                f"loss is {shown(self.loss)}; expected a function loss(params, batch)."
            )
        check_selector(self.weight_decay, "weight_decay")

    def value(self, params: PyTree, hparams: PyTree, batch: PyTree) -> Tensor:
        """The loss with its weight decay."""
        decay = select(self.weight_decay, hparams, "weight_decay")
        value = self._loss(params, hparams, batch)
        return value if is_zero(decay) else value + 0.5 * decay * squared_norm(params)

    def gradient(self, params: PyTree, hparams: PyTree, batch: PyTree) -> PyTree:
        """The gradient, with weight decay added as `torch.optim.SGD` adds it (bit for bit)."""
        gradient = autodiff.gradient(lambda u: self._loss(u, hparams, batch), params)
        decay = select(self.weight_decay, hparams, "weight_decay")
        if is_zero(decay):
            return gradient
        return tree.pytree.tree_map(lambda g, u: add_scaled(g, u, decay), gradient, params)

    def _loss(self, params: PyTree, hparams: PyTree, batch: PyTree) -> Tensor:
        value: Any = call_loss(self.loss, hparams, params, batch)
        if self.has_aux:
            if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != 2:
                raise InputError(
                    f"has_aux=True, but loss returned {shown(value)}; expected (scalar, aux)."
                )
            value, _ = cast("tuple[Any, Any]", value)
        return check_scalar(value, "loss")


def squared_norm(params: PyTree) -> Tensor:
    """The sum of squares of all leaves."""
    return torch.stack([leaf.square().sum() for leaf in tree.tensors(params)]).sum()


def add_scaled(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """X + scale * y; a number is rounded as in `torch.add(x, y, alpha=scale)`."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, y, scale.to(x.dtype))
    return x if scale == 0 else torch.add(x, y, alpha=scale)


def is_zero(value: object) -> bool:
    """Whether a value is the number zero, and nothing that may be learned."""
    return isinstance(value, float | int) and value == 0
