"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.registry import FIELDS
from odeopt.rule.clipping import GradientTransform
from odeopt.rule.leafwise import LeafwiseRule, Leaves
from odeopt.rule.options import Option, add_scaled, check_option
from odeopt.types import Loss, PyTree


@final
@FIELDS.register("sgd", example=lambda loss: SGD(loss, momentum=0.9, nesterov=True))
class SGD(LeafwiseRule):
    r"""$b_{k+1} = \mu b_k + (1 - \tau)(g + w u),\quad u_{k+1} = u_k - \alpha_k b_{k+1}$.

    Bit-equal to `torch.optim.SGD` in float64 as long as options are numbers. The first step takes
    $b_1 = g + w u$, as torch does.

    Cost: one gradient per step, and one Hessian-vector product in its exact adjoint; momentum
    doubles the state.

    Args:
        loss: see `GradientRule`.
        momentum: $\mu$; see `Option` for this and the following.
        dampening: $\tau$.
        weight_decay: w.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        nesterov: whether the step looks ahead along the momentum.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Sutskever et al. 2013, "On the importance of initialization and momentum in deep
        learning", in torch's form.
    """

    def __init__(
        self, loss: Loss, momentum: Option = 0.0, dampening: Option = 0.0,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, nesterov: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None,
    ) -> None:  # fmt: skip
        super().__init__(loss, gradient_transform, micro_batches, buffers)
        self._nesterov = nesterov
        self._options = {
            "momentum": check_option(momentum, "momentum"),
            "dampening": check_option(dampening, "dampening"),
            "weight_decay": check_option(weight_decay, "weight_decay"),
            "lr_scale": check_option(lr_scale, "lr_scale"),
        }
        self._plain = _is_zero(momentum)
        if nesterov and (self._plain or not _is_zero(dampening)):
            raise InputError("nesterov=True needs a momentum and no dampening.")
        self.slot_names = () if self._plain else ("momentum",)

    @override
    def options(self) -> dict[str, Option]:
        return self._options

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = add_scaled(g, u, options["weight_decay"])
        if not self._plain:
            momentum = options["momentum"]
            buffer = torch.where(
                k == 0, g, add_scaled(slots["momentum"] * momentum, g, 1 - options["dampening"])
            )
            g = add_scaled(g, buffer, momentum) if self._nesterov else buffer
            slots = {"momentum": buffer}
        return torch.addcmul(u, g, lr * options["lr_scale"], value=-1), slots


def _is_zero(option: Option) -> bool:
    return isinstance(option, float | int) and option == 0
