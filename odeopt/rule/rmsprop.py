"""RMSprop."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.registry import FIELDS
from odeopt.rule.clipping import GradientTransform, safe_sqrt
from odeopt.rule.leafwise import LeafwiseRule, Leaves
from odeopt.rule.options import Option, add_scaled, add_square, check_option
from odeopt.types import Loss, PyTree


@final
@FIELDS.register("rmsprop", example=lambda loss: RMSprop(loss, momentum=0.5))
class RMSprop(LeafwiseRule):
    r"""$v = \rho v + (1 - \rho) g^2,\; b = \mu b + g / (\sqrt{v} + \epsilon),\; u = u - \alpha b$.

    Equal to `torch.optim.RMSprop` to rounding; g holds $w u$. The square root has
    derivative 0 at 0.

    Cost: one gradient per step; v, and b and the mean where they are used, each of the size of the
    parameters.

    Args:
        loss: see `GradientRule`.
        smoothing: $\rho$, torch's alpha; see `Option` for this and the following.
        eps: $\epsilon$.
        weight_decay: w.
        momentum: $\mu$; 0 leaves b out.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        centered: whether v is centred by the square of the mean gradient.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Tieleman and Hinton 2012, lecture 6.5, in torch's form.
    """

    def __init__(
        self, loss: Loss, smoothing: Option = 0.99, eps: Option = 1e-8,
        weight_decay: Option = 0.0, momentum: Option = 0.0, lr_scale: Option = 1.0,
        centered: bool = False, gradient_transform: GradientTransform | None = None,
        micro_batches: int = 1, buffers: PyTree = None,
    ) -> None:  # fmt: skip
        super().__init__(loss, gradient_transform, micro_batches, buffers)
        self._options = {
            "smoothing": check_option(smoothing, "smoothing", below=1.0),
            "eps": check_option(eps, "eps"),
            "weight_decay": check_option(weight_decay, "weight_decay"),
            "momentum": check_option(momentum, "momentum"),
            "lr_scale": check_option(lr_scale, "lr_scale"),
        }
        self._centered = centered
        self._moves = not (isinstance(momentum, float | int) and momentum == 0)
        extra = (("mean", centered), ("momentum", self._moves))
        self.slot_names = ("square", *(name for name, used in extra if used))

    @override
    def options(self) -> dict[str, Option]:
        return self._options

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = add_scaled(g, u, options["weight_decay"])
        rho = options["smoothing"]
        square = add_square(slots["square"] * rho, g, 1 - rho)
        after = {"square": square}
        if self._centered:
            mean = after["mean"] = torch.lerp(slots["mean"], g, 1 - rho)
            square = torch.addcmul(square, mean, mean, value=-1)
        spread = safe_sqrt(square) + options["eps"]
        rate = lr * options["lr_scale"]
        if not self._moves:
            return torch.addcdiv(u, rate * g, spread, value=-1), after
        after["momentum"] = torch.addcdiv(slots["momentum"] * options["momentum"], g, spread)
        return torch.addcmul(u, after["momentum"], rate, value=-1), after
