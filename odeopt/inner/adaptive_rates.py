"""Rates for each entry, from the squares of its gradients: Adagrad, RMSprop, Adadelta."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.clipping import GradientTransform, safe_sqrt
from odeopt.inner.leafwise import Leaves, Option, check_option, for_leaves
from odeopt.inner.objective import is_zero
from odeopt.inner.torch_rule import TorchRule, add_square
from odeopt.registry import FIELDS
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


@final
@FIELDS.register("rmsprop", example=lambda loss: RMSprop(loss, momentum=0.5))
class RMSprop(TorchRule):
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
        maximize: whether the loss is to become large: g is that of -L.

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
        micro_batches: int = 1, buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "smoothing": smoothing, "eps": eps, "weight_decay": weight_decay,
            "momentum": momentum, "lr_scale": lr_scale,
        }  # fmt: skip
        self._centered, self._moves = centered, not is_zero(momentum)
        extra = (("mean", centered), ("momentum", self._moves))
        slots = ("square", *(name for name, used in extra if used))
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = self.decayed(g, u, options)
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


@final
@FIELDS.register("adagrad", example=lambda loss: Adagrad(loss, 0.1, 0.01, 0.2))
class Adagrad(TorchRule):
    r"""$v = v + g^2,\; u = u - \frac{\alpha}{1 + k d}\, g / (\sqrt{v} + \epsilon)$.

    Equal to `torch.optim.Adagrad` to rounding; g holds $w u$, and v begins with $v_0$. The
    square root has derivative 0 at 0; elsewhere the Jacobian of a first step is up to $\alpha /
    \epsilon$, unless $v_0$ is positive: eps and $v_0$ are what makes a gradient useful.

    Cost: one gradient per step, twice the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        lr_decay: d; see `Option` for this and the following.
        weight_decay: w.
        initial_accumulator_value: $v_0$: a number, or a tree of numbers that follows the params
            from the top; no selector.
        eps: $\epsilon$.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Duchi et al. 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", in torch's form.
    """

    def __init__(
        self, loss: Loss, lr_decay: Option = 0.0, weight_decay: Option = 0.0,
        initial_accumulator_value: Option = 0.0, eps: Option = 1e-10, lr_scale: Option = 1.0,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "lr_scale": lr_scale,
        }  # fmt: skip
        super().__init__(
            loss, options, ("sum",), gradient_transform, micro_batches, buffers, maximize
        )
        what = "initial_accumulator_value"
        check_option(initial_accumulator_value, what)
        if any(map(callable, tree.leaves(initial_accumulator_value))):
            raise InputError(f"{what} is a selector; expected a number, or a tree of numbers.")
        self._initial = initial_accumulator_value

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        values = for_leaves(self._initial, None, params, "initial_accumulator_value")
        leaves = zip(tree.leaves(params), values, strict=True)
        return {"sum": tree.with_leaves(params, [torch.zeros_like(u) + x for u, x in leaves])}

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = self.decayed(g, u, options)
        total = torch.addcmul(slots["sum"], g, g)
        rate = lr * options["lr_scale"] / (1 + k * options["lr_decay"])
        spread = safe_sqrt(total) + options["eps"]
        return torch.addcdiv(u, rate * g, spread, value=-1), {"sum": total}


@final
@FIELDS.register("adadelta", example=lambda loss: Adadelta(loss, weight_decay=0.1, eps=1e-3))
class Adadelta(TorchRule):
    r"""$d = g \sqrt{s + \epsilon} / \sqrt{v + \epsilon},\; u = u - \alpha d$.

    $v = \rho v + (1 - \rho) g^2$ is the mean square of gradients, $s = \rho s + (1 - \rho) d^2$
    that of earlier steps. Equal to `torch.optim.Adadelta` to rounding; g holds $w u$. Rates are
    about 1.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        rho: $\rho$; see `Option` for this and the following.
        eps: $\epsilon$. It bounds the Jacobian already, being below the roots.
        weight_decay: w.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Zeiler 2012, arXiv 1212.5701.
    """

    def __init__(
        self, loss: Loss, rho: Option = 0.9, eps: Option = 1e-6, weight_decay: Option = 0.0,
        lr_scale: Option = 1.0, gradient_transform: GradientTransform | None = None,
        micro_batches: int = 1, buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {"rho": rho, "eps": eps, "weight_decay": weight_decay, "lr_scale": lr_scale}
        slots = ("square", "moved")
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = self.decayed(g, u, options)
        rho, eps = options["rho"], options["eps"]
        square = add_square(slots["square"] * rho, g, 1 - rho)
        step = g * (safe_sqrt(slots["moved"] + eps) / safe_sqrt(square + eps))
        after = {"square": square, "moved": add_square(slots["moved"] * rho, step, 1 - rho)}
        return torch.addcmul(u, step, lr * options["lr_scale"], value=-1), after
