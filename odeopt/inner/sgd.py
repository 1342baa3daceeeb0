"""Stochastic gradient descent: with momentum, and averaged."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.clipping import GradientTransform
from odeopt.inner.leafwise import Leaves, Option
from odeopt.inner.objective import add_scaled, is_zero
from odeopt.inner.torch_rule import TorchRule
from odeopt.registry import FIELDS
from odeopt.tools.types import Loss, PyTree


@final
@FIELDS.register("sgd", example=lambda loss: SGD(loss, momentum=0.9, nesterov=True))
class SGD(TorchRule):
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
        maximize: whether the loss is to become large: g is that of -L.

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
        buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }  # fmt: skip
        self._nesterov, self._plain = nesterov, is_zero(momentum)
        self._undamped = is_zero(dampening)
        slots = () if self._plain else ("momentum",)
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)
        if nesterov and (self._plain or not is_zero(dampening)):
            raise InputError("nesterov=True needs a momentum and no dampening.")

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g = self.decayed(g, u, options)
        if not self._plain:
            momentum = options["momentum"]
            buffer = add_scaled(slots["momentum"] * momentum, g, 1 - options["dampening"])
            if not self._undamped:
                buffer = torch.where(k == 0, g, buffer)
            g = add_scaled(g, buffer, momentum) if self._nesterov else buffer
            slots = {"momentum": buffer}
        return torch.addcmul(u, g, lr * options["lr_scale"], value=-1), slots


@final
@FIELDS.register("asgd", example=lambda loss: ASGD(loss, lambd=0.1, t0=2, averaged=True))
class ASGD(TorchRule):
    r"""$u_{k+1} = (1 - \lambda \eta_k) u_k - \eta_k g,\; a_{k+1} = a_k + \mu_k (u_{k+1} - a_k)$.

    Averaged gradient descent, equal to `torch.optim.ASGD` to rounding. g holds $w u$, and
    $\eta_0 = \alpha_0$, $\eta_{k+1} = \alpha_k / (1 + \lambda \alpha_k (k + 1))^p$,
    $\mu_k = 1 / \max(1, k - t_0)$. So a rate counts one step later than in SGD, the first one
    twice, and the last one has no effect. The average a is the last u until $t_0$.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        lambd: $\lambda$; see `Option` for this and the following.
        alpha: p.
        t0: $t_0$.
        weight_decay: w.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        averaged: whether the result is the average a. By default it is u, as in torch, which
            leaves a in the optimiser.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", in
        torch's form.
    """

    def __init__(
        self, loss: Loss, lambd: Option = 1e-4, alpha: Option = 0.75, t0: Option = 1e6,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, averaged: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }  # fmt: skip
        self._averaged = averaged
        slots = ("average", "rate")
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        return {**super().init_slots(params), "average": params}

    @override
    def readout(self, state: PyTree) -> PyTree:
        return state.slots["average"] if self._averaged else state.params

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g, decay = self.decayed(g, u, options), options["lambd"]
        given = lr * options["lr_scale"]
        rate = torch.where(k == 0, given, slots["rate"])
        after = torch.addcmul(u * (1 - decay * rate), g, rate, value=-1)
        weight = (1 / torch.clamp(k - options["t0"], min=1)).to(u.dtype)
        following = given / (1 + decay * given * (k + 1)) ** options["alpha"]
        return after, {
            "average": torch.lerp(slots["average"], after, weight),
            "rate": following.to(u.dtype).expand_as(u),
        }
