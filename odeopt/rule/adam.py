"""Adam, with weight decay in either form."""

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


class _Adam(LeafwiseRule):
    """What Adam and AdamW share."""

    slot_names = ("mean", "square")

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, amsgrad: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None,
    ) -> None:  # fmt: skip
        super().__init__(loss, gradient_transform, micro_batches, buffers)
        first, second = betas
        self._options = {
            "beta1": check_option(first, "betas[0]", below=1.0),
            "beta2": check_option(second, "betas[1]", below=1.0),
            "eps": check_option(eps, "eps"),
            "weight_decay": check_option(weight_decay, "weight_decay"),
            "lr_scale": check_option(lr_scale, "lr_scale"),
        }
        self._amsgrad = amsgrad
        if amsgrad:
            self.slot_names = (*self.slot_names, "largest")

    @override
    def options(self) -> dict[str, Option]:
        return self._options

    def _move(
        self, k: Tensor, rate: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        """One step of Adam along a gradient that holds its decay."""
        beta1, beta2 = options["beta1"], options["beta2"]
        mean = torch.lerp(slots["mean"], g, 1 - beta1)
        square = add_square(slots["square"] * beta2, g, 1 - beta2)
        after = {"mean": mean, "square": square}
        if self._amsgrad:
            square = after["largest"] = torch.maximum(slots["largest"], square)
        count = k.to(torch.float64) + 1
        first = (1 - beta1**count).to(u.dtype)
        second = (1 - beta2**count).to(u.dtype)
        scale = safe_sqrt(square) / second.sqrt() + options["eps"]
        return torch.addcdiv(u, mean * (rate / first), scale, value=-1), after


@final
@FIELDS.register("adam", example=lambda loss: Adam(loss, weight_decay=0.1))
class Adam(_Adam):
    r"""Adam, equal to `torch.optim.Adam` to rounding.

    $m = \beta_1 m + (1 - \beta_1) g,\; v = \beta_2 v + (1 - \beta_2) g^2,\; u = u - \alpha\,
    \frac{m / (1 - \beta_1^{k + 1})}{\sqrt{v / (1 - \beta_2^{k + 1})} + \epsilon}$, where g
    holds $w u$. The square root has derivative 0 at 0, so that an entry that never gets a gradient
    stays exact; elsewhere the Jacobian is up to $\alpha / \epsilon$: raise eps (1e-4, say) where
    entries come close to zero.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        betas: $(\beta_1, \beta_2)$; see `Option` for these and the following.
        eps: $\epsilon$.
        weight_decay: w.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        amsgrad: whether the largest v so far is used.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Kingma and Ba 2015, arXiv 1412.6980; Reddi et al. 2018 for amsgrad.
    """

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = add_scaled(g, u, options["weight_decay"])
        return self._move(k, lr * options["lr_scale"], g, u, slots, options)


@final
@FIELDS.register("adamw", example=lambda loss: AdamW(loss, betas=(0.8, 0.9)))
class AdamW(_Adam):
    r"""Adam with decoupled weight decay: $u$ is first multiplied by $1 - \alpha w$.

    Equal to `torch.optim.AdamW` to rounding; costs and arguments are those of `Adam`, but
    weight_decay is 0.01 by default as there.

    Raises:
        InputError: as `Adam`.

    References:
        Loshchilov and Hutter 2019, arXiv 1711.05101.
    """

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.01, lr_scale: Option = 1.0, amsgrad: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None,
    ) -> None:  # fmt: skip
        super().__init__(
            loss, betas, eps, weight_decay, lr_scale, amsgrad, gradient_transform, micro_batches,
            buffers,
        )  # fmt: skip

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        rate = lr * options["lr_scale"]
        return self._move(k, rate, g, u * (1 - rate * options["weight_decay"]), slots, options)
