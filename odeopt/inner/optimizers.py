"""Update rules: SGD, Adam, AdamW and RMSprop, as in torch.optim."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.clipping import GradientTransform, safe_sqrt
from odeopt.inner.leafwise import LeafwiseRule, Leaves, Option, check_option
from odeopt.inner.objective import add_scaled, is_zero
from odeopt.registry import FIELDS
from odeopt.tools.types import Loss, PyTree


class _Rule(LeafwiseRule):
    """A rule of torch.optim: it keeps its options, checked."""

    elementwise = True

    def __init__(
        self, loss: Loss, options: dict[str, Option], slot_names: tuple[str, ...],
        gradient_transform: GradientTransform | None, micro_batches: int, buffers: PyTree,
    ) -> None:  # fmt: skip
        super().__init__(loss, gradient_transform, micro_batches, buffers)
        self._options = options
        self.slot_names = slot_names
        for name, option in options.items():
            below = 1.0 if name in _BELOW_ONE else float("inf")
            check_option(option, _BELOW_ONE.get(name, name), below=below)

    @override
    def options(self) -> dict[str, Option]:
        return self._options


_BELOW_ONE = {"beta1": "betas[0]", "beta2": "betas[1]", "smoothing": "smoothing"}
"""Options that are averages' weights of what was before, and what errors call them."""


@final
@FIELDS.register("sgd", example=lambda loss: SGD(loss, momentum=0.9, nesterov=True))
class SGD(_Rule):
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
        options = {
            "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }  # fmt: skip
        self._nesterov, self._plain = nesterov, is_zero(momentum)
        self._undamped = is_zero(dampening)
        slots = () if self._plain else ("momentum",)
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers)
        if nesterov and (self._plain or not is_zero(dampening)):
            raise InputError("nesterov=True needs a momentum and no dampening.")

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = add_scaled(g, u, options["weight_decay"])
        if not self._plain:
            momentum = options["momentum"]
            buffer = add_scaled(slots["momentum"] * momentum, g, 1 - options["dampening"])
            if not self._undamped:
                buffer = torch.where(k == 0, g, buffer)
            g = add_scaled(g, buffer, momentum) if self._nesterov else buffer
            slots = {"momentum": buffer}
        return torch.addcmul(u, g, lr * options["lr_scale"], value=-1), slots


class _Adam(_Rule):
    """What Adam and AdamW share."""

    _decoupled = False
    """Whether weight decay shortens the parameters, and is no part of the gradient."""

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, amsgrad: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None,
    ) -> None:  # fmt: skip
        beta1, beta2 = betas
        options = {
            "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }  # fmt: skip
        self._amsgrad = amsgrad
        slots = ("mean", "square", "largest") if amsgrad else ("mean", "square")
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        beta1, beta2, rate = options["beta1"], options["beta2"], lr * options["lr_scale"]
        if self._decoupled:
            u = u * (1 - rate * options["weight_decay"])
        else:
            g = add_scaled(g, u, options["weight_decay"])
        mean = torch.lerp(slots["mean"], g, 1 - beta1)
        square = _add_square(slots["square"] * beta2, g, 1 - beta2)
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

    _decoupled = True

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


@final
@FIELDS.register("rmsprop", example=lambda loss: RMSprop(loss, momentum=0.5))
class RMSprop(_Rule):
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
        options = {
            "smoothing": smoothing, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "lr_scale": lr_scale,
        }  # fmt: skip
        self._centered, self._moves = centered, not is_zero(momentum)
        extra = (("mean", centered), ("momentum", self._moves))
        slots = ("square", *(name for name, used in extra if used))
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = add_scaled(g, u, options["weight_decay"])
        rho = options["smoothing"]
        square = _add_square(slots["square"] * rho, g, 1 - rho)
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


def _add_square(x: Tensor, g: Tensor, scale: float | Tensor) -> Tensor:
    """X + scale * g * g, rounded for a number as `torch.addcmul(x, g, g, value=scale)` does."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, scale * g, g)
    return torch.addcmul(x, g, g, value=scale)
