"""What the update rules of torch.optim have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.inner.clipping import GradientTransform
from odeopt.inner.leafwise import LeafwiseRule, Option, check_option
from odeopt.inner.objective import add_scaled
from odeopt.tools.types import Loss, PyTree


class TorchRule(LeafwiseRule):
    """A rule of torch.optim: it keeps its options, checked, and may go uphill."""

    elementwise = True

    pairs: Mapping[str, tuple[str, str]] = {}
    """Arguments of the constructor that are pairs of options, and how these are called."""

    def __init__(
        self, loss: Loss, options: dict[str, Option], slot_names: tuple[str, ...],
        gradient_transform: GradientTransform | None, micro_batches: int, buffers: PyTree,
        maximize: bool,
    ) -> None:  # fmt: skip
        super().__init__(loss, gradient_transform, micro_batches, buffers)
        self._options, self._maximize = options, maximize
        self.slot_names = slot_names
        for name, option in options.items():
            below = 1.0 if name in _BELOW_ONE else float("inf")
            check_option(option, _BELOW_ONE.get(name, name), below=below)

    @override
    def options(self) -> dict[str, Option]:
        return self._options

    @override
    def _given(self) -> Mapping[str, Any]:
        own = self._options
        pairs = {name: (own[first], own[last]) for name, (first, last) in self.pairs.items()}
        return {**super()._given(), **pairs}

    def downhill(self, g: Tensor) -> Tensor:
        """The gradient of what is to become small: with maximize that of the loss, reversed."""
        return -g if self._maximize else g

    def decayed(self, g: Tensor, u: Tensor, options: dict[str, Any]) -> Tensor:
        """The same with weight decay, as part of the gradient."""
        return add_scaled(self.downhill(g), u, options["weight_decay"])


_BELOW_ONE = {
    "beta1": "betas[0]", "beta2": "betas[1]", "smoothing": "smoothing", "rho": "rho",
}  # fmt: skip
"""Options that are averages' weights of what was before, and what errors call them."""


def add_square(x: Tensor, g: Tensor, scale: float | Tensor) -> Tensor:
    """X + scale * g * g, rounded for a number as `torch.addcmul(x, g, g, value=scale)` does."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, scale * g, g)
    return torch.addcmul(x, g, g, value=scale)


def steps_with(k: Tensor) -> Tensor:
    """How many steps have been made after step k, this one included; in double precision."""
    return k.to(torch.float64) + 1
