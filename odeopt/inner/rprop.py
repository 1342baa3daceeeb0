"""Resilient propagation: steps by the sign of the gradient."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.clipping import GradientTransform
from odeopt.inner.leafwise import Leaves, Option
from odeopt.inner.torch_rule import TorchRule
from odeopt.registry import FIELDS
from odeopt.tools.shown import shown
from odeopt.tools.types import Loss, PyTree


@final
@FIELDS.register("rprop", example=lambda loss: Rprop(loss, (0.4, 1.3), (1e-3, 0.2)))
class Rprop(TorchRule):
    r"""$s = \min(\max(s\, \eta, s_{\min}), s_{\max}),\; u = u - s\, \operatorname{sign}(g)$.

    Equal to `torch.optim.Rprop` to rounding. $\eta$ is $\eta_+$ where g has the sign that it had
    before, $\eta_-$ where it has the other, and 1 where one of them is 0. Where the sign has
    changed, nothing moves, and the gradient is remembered as 0. s begins with the first learning
    rate; later rates have no effect.

    The derivative is that of almost everywhere: a step does not depend on the size of g. So
    nothing but s carries a gradient to the first rate and to the options, the final parameters
    move along with the initial ones, and hyperparameters of the loss get a gradient of 0.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        etas: $(\eta_-, \eta_+)$; see `Option` for these and the following.
        step_sizes: $(s_{\min}, s_{\max})$.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Riedmiller and Braun 1993, "A direct adaptive method for faster backpropagation learning",
        in torch's form.
    """

    pairs = {  # noqa: RUF012
        "etas": ("etas[0]", "etas[1]"), "step_sizes": ("step_sizes[0]", "step_sizes[1]"),
    }  # fmt: skip

    def __init__(
        self, loss: Loss, etas: tuple[Option, Option] = (0.5, 1.2),
        step_sizes: tuple[Option, Option] = (1e-6, 50.0), lr_scale: Option = 1.0,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        (shrink, grow), (least, most) = etas, step_sizes
        options = {
            "etas[0]": shrink, "etas[1]": grow, "step_sizes[0]": least, "step_sizes[1]": most,
            "lr_scale": lr_scale,
        }  # fmt: skip
        slots = ("previous", "size")
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)
        wrong = isinstance(shrink, int | float) and not 0 < shrink < 1
        if wrong or (isinstance(grow, int | float) and not grow > 1):
            raise InputError(f"etas is {shown(etas)}; expected a number in (0, 1) and one above 1.")

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = self.downhill(g)
        agrees = g * slots["previous"]
        size = torch.where(k == 0, lr * options["lr_scale"], slots["size"])
        changed = torch.where(agrees < 0, size * options["etas[0]"], size)
        size = torch.where(agrees > 0, size * options["etas[1]"], changed)
        least, most = options["step_sizes[0]"], options["step_sizes[1]"]
        size = torch.where(size < least, least, size)
        size = torch.where(size > most, most, size)
        g = torch.where(agrees < 0, 0.0, g)
        return torch.addcmul(u, g.sign(), size, value=-1), {"previous": g, "size": size}
