"""Adam and its relatives: the mean of the gradient, over the root of the mean of its square."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.inner.clipping import GradientTransform, safe_sqrt
from odeopt.inner.leafwise import Leaves, Option
from odeopt.inner.objective import is_zero
from odeopt.inner.torch_rule import TorchRule, add_square, steps_with
from odeopt.registry import FIELDS
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree

_BETAS = {"betas": ("beta1", "beta2")}


class _Moments(TorchRule):
    """What rules share that remember the mean of the gradient and that of its square."""

    pairs = _BETAS

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option], options: dict[str, Option],
        extra_slots: tuple[str, ...], decoupled: bool,
        gradient_transform: GradientTransform | None, micro_batches: int, buffers: PyTree,
        maximize: bool,
    ) -> None:  # fmt: skip
        beta1, beta2 = betas
        options = {"beta1": beta1, "beta2": beta2, **options}
        self._decoupled = decoupled
        """Whether weight decay shortens the parameters, and is no part of the gradient."""
        slots = ("mean", "square", *extra_slots)
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)

    def weigh(
        self, rate: Tensor, g: Tensor, u: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The gradient and the parameters after weight decay."""
        if self._decoupled:
            return self.downhill(g), u * (1 - rate * options["weight_decay"])
        return self.decayed(g, u, options), u

    @staticmethod
    def moments(g: Tensor, slots: Leaves, options: dict[str, Any]) -> Leaves:
        """The means with this gradient."""
        beta1, beta2 = options["beta1"], options["beta2"]
        return {
            "mean": torch.lerp(slots["mean"], g, 1 - beta1),
            "square": add_square(slots["square"] * beta2, g, 1 - beta2),
        }

    @staticmethod
    def root(square: Tensor, second: Tensor, options: dict[str, Any]) -> Tensor:
        r"""$\sqrt{v + \epsilon_r b}$ where b is the bias of v."""
        eps_root = options["eps_root"]
        return safe_sqrt(square if is_zero(eps_root) else square + second * eps_root)


class _Adam(_Moments):
    """What Adam and AdamW share."""

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option], options: dict[str, Option], amsgrad: bool,
        decoupled: bool, gradient_transform: GradientTransform | None, micro_batches: int,
        buffers: PyTree, maximize: bool,
    ) -> None:  # fmt: skip
        self._amsgrad = amsgrad
        super().__init__(
            loss, betas, options, ("largest",) if amsgrad else (), decoupled, gradient_transform,
            micro_batches, buffers, maximize,
        )  # fmt: skip

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        rate = lr * options["lr_scale"]
        g, u = self.weigh(rate, g, u, options)
        after = self.moments(g, slots, options)
        square = after["square"]
        if self._amsgrad:
            square = after["largest"] = torch.maximum(slots["largest"], square)
        count = steps_with(k)
        first = (1 - options["beta1"] ** count).to(u.dtype)
        second = (1 - options["beta2"] ** count).to(u.dtype)
        scale = self.root(square, second, options) / second.sqrt() + options["eps"]
        return torch.addcdiv(u, after["mean"] * (rate / first), scale, value=-1), after


@final
@FIELDS.register("adam", example=lambda loss: Adam(loss, weight_decay=0.1))
class Adam(_Adam):
    r"""Adam, equal to `torch.optim.Adam` to rounding.

    $m = \beta_1 m + (1 - \beta_1) g,\; v = \beta_2 v + (1 - \beta_2) g^2,\; u = u - \alpha\,
    \frac{m / (1 - \beta_1^{k + 1})}{\sqrt{v / (1 - \beta_2^{k + 1}) + \epsilon_r} + \epsilon}$,
    where g holds $w u$. The square root has derivative 0 at 0, so that an entry that never gets a
    gradient stays exact; elsewhere the Jacobian is up to $\alpha / \epsilon$: raise eps (1e-4, say)
    or eps_root (its square) where entries come close to zero.

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
        eps_root: $\epsilon_r$, an `Option`; torch has none, which is 0. It keeps the derivative of
            the root small where gradients are.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Kingma and Ba 2015, arXiv 1412.6980; Reddi et al. 2018 for amsgrad.
    """

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, amsgrad: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, eps_root: Option = 0.0, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "eps": eps, "weight_decay": weight_decay, "lr_scale": lr_scale, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(
            loss, betas, options, amsgrad, False, gradient_transform, micro_batches, buffers,
            maximize,
        )  # fmt: skip


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
        buffers: PyTree = None, *, eps_root: Option = 0.0, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "eps": eps, "weight_decay": weight_decay, "lr_scale": lr_scale, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(
            loss, betas, options, amsgrad, True, gradient_transform, micro_batches, buffers,
            maximize,
        )  # fmt: skip


@final
@FIELDS.register("nadam", example=lambda loss: NAdam(loss, momentum_decay=0.1))
class NAdam(_Moments):
    r"""Adam with Nesterov's momentum, equal to `torch.optim.NAdam` to rounding.

    $u = u - \alpha\, \frac{(1 - \mu_k)\, g / (1 - \pi_k) + \mu_{k+1}\, m / (1 - \pi_k \mu_{k+1})}
    {\sqrt{\hat v + \epsilon_r} + \epsilon}$ with m and $\hat v$ as in `Adam`,
    $\mu_k = \beta_1 (1 - 0.96^{(k + 1) d} / 2)$ and $\pi_k = \mu_0 \cdots \mu_k$.

    Cost: one gradient per step, four times the state of gradient descent: $\pi$ is kept for
    each entry.

    Args:
        loss: see `GradientRule`.
        betas: $(\beta_1, \beta_2)$; see `Option` for these and the following.
        eps: $\epsilon$.
        weight_decay: w.
        momentum_decay: d.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        decoupled_weight_decay: whether u is first multiplied by $1 - \alpha w$, as in `AdamW`;
            otherwise g holds $w u$.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        eps_root: $\epsilon_r$, an `Option`, as in `Adam`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Dozat 2016, "Incorporating Nesterov momentum into Adam", in torch's form.
    """

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, momentum_decay: Option = 4e-3, lr_scale: Option = 1.0,
        decoupled_weight_decay: bool = False, gradient_transform: GradientTransform | None = None,
        micro_batches: int = 1, buffers: PyTree = None, *, eps_root: Option = 0.0,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay,
            "lr_scale": lr_scale, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(
            loss, betas, options, ("product",), decoupled_weight_decay, gradient_transform,
            micro_batches, buffers, maximize,
        )  # fmt: skip

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        ones = tree.map_tensors(torch.ones_like, params)
        return {**super().init_slots(params), "product": ones}

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        rate, count = lr * options["lr_scale"], steps_with(k)
        g, u = self.weigh(rate, g, u, options)
        after = self.moments(g, slots, options)

        def momentum(index: Tensor) -> Tensor:
            shortened = 1 - 0.5 * 0.96 ** (index * options["momentum_decay"])
            return (options["beta1"] * shortened).to(u.dtype)

        now, following = momentum(count), momentum(count + 1)
        product = after["product"] = slots["product"] * now
        second = (1 - options["beta2"] ** count).to(u.dtype)
        scale = self.root(after["square"], second, options) / second.sqrt() + options["eps"]
        ahead = g * ((1 - now) / (1 - product))
        ahead = ahead + after["mean"] * (following / (1 - product * following))
        return torch.addcdiv(u, ahead * rate, scale, value=-1), after


@final
@FIELDS.register("radam", example=lambda loss: RAdam(loss, betas=(0.8, 0.9)))
class RAdam(_Moments):
    r"""Rectified Adam, equal to `torch.optim.RAdam` to rounding.

    $u = u - \alpha\, \hat m\, r_k / (\sqrt{v + \epsilon_r b} + \epsilon)$, with m and v as in
    `Adam`, $\hat m = m / (1 - \beta_1^{k + 1})$, $b = 1 - \beta_2^{k + 1}$ and
    $r_k = \sqrt{b \frac{(\rho_k - 4)(\rho_k - 2) \rho_\infty}
    {(\rho_\infty - 4)(\rho_\infty - 2) \rho_k}}$, where
    $\rho_\infty = \frac{2}{1 - \beta_2} - 1$ and
    $\rho_k = \rho_\infty - 2 (k + 1) \beta_2^{k + 1} / b$. As long as $\rho_k \le 5$ the step is
    $\alpha \hat m$ alone. These are the first 5 steps with $\beta_2 = 0.999$, and all with
    $\beta_2 \le 2/3$.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        betas: $(\beta_1, \beta_2)$; see `Option` for these and the following.
        eps: $\epsilon$.
        weight_decay: w.
        lr_scale: multiplies the grid's learning rate, e.g. per group of parameters.
        decoupled_weight_decay: whether u is first multiplied by $1 - \alpha w$, as in `AdamW`;
            otherwise g holds $w u$.
        gradient_transform: see `GradientRule`, as the following.
        micro_batches: see `GradientRule`.
        buffers: see `GradientRule`.
        eps_root: $\epsilon_r$, an `Option`, as in `Adam`.
        maximize: whether the loss is to become large: g is that of -L.

    Raises:
        InputError: if an option is out of its range.
        CapturedTensorError: if an option is a tensor that requires grad: pass it in hparams.

    References:
        Liu et al. 2020, arXiv 1908.03265, in torch's form.
    """

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0, decoupled_weight_decay: bool = False,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, eps_root: Option = 0.0, maximize: bool = False,
    ) -> None:  # fmt: skip
        options = {
            "eps": eps, "weight_decay": weight_decay, "lr_scale": lr_scale, "eps_root": eps_root,
        }  # fmt: skip
        super().__init__(
            loss, betas, options, (), decoupled_weight_decay, gradient_transform, micro_batches,
            buffers, maximize,
        )  # fmt: skip

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        rate, count = lr * options["lr_scale"], steps_with(k)
        g, u = self.weigh(rate, g, u, options)
        after = self.moments(g, slots, options)
        first = (1 - options["beta1"] ** count).to(u.dtype)
        second, rectified, factor = _rectification(options["beta2"], count)
        root = self.root(after["square"], second.to(u.dtype), options) + options["eps"]
        # what is not used must have a finite derivative, too
        scale = torch.where(rectified, root, 1.0)
        ahead = after["mean"] * (rate / first) * factor.to(u.dtype)
        return torch.addcdiv(u, ahead, scale, value=-1), after


def _rectification(beta2: Any, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bias of the square, whether a step is divided by its root, and what it is multiplied by.

    Lengths are set to 6 where they are not used, so that derivatives w.r.t. beta2 are finite there.
    """
    power = beta2**count
    second = 1 - power
    longest = 2 / (1 - beta2) - 1 + torch.zeros_like(second)
    length = longest - 2 * count * power / second
    rectified = length > 5
    longest = torch.where(rectified, longest, 6.0)
    length = torch.where(rectified, length, 6.0)
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    factor = torch.where(rectified, (ratio * second).sqrt(), 1.0)
    return second, rectified, factor


@final
@FIELDS.register("adamax", example=lambda loss: Adamax(loss, betas=(0.8, 0.9)))
class Adamax(TorchRule):
    r"""$v = \max(\beta_2 v, |g| + \epsilon),\; u = u - \alpha m / ((1 - \beta_1^{k + 1}) v)$.

    Adam with the largest gradient in place of the mean square; equal to `torch.optim.Adamax` to
    rounding. m is as in `Adam`, and g holds $w u$. The derivative is that of the larger of
    both, half of each where they are equal, and 0 of $|g|$ at 0.

    Cost: one gradient per step, three times the state of gradient descent.

    Args:
        loss: see `GradientRule`.
        betas: $(\beta_1, \beta_2)$; see `Option` for these and the following.
        eps: $\epsilon$.
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
        Kingma and Ba 2015, arXiv 1412.6980, section 7.1.
    """

    pairs = _BETAS

    def __init__(
        self, loss: Loss, betas: tuple[Option, Option] = (0.9, 0.999), eps: Option = 1e-8,
        weight_decay: Option = 0.0, lr_scale: Option = 1.0,
        gradient_transform: GradientTransform | None = None, micro_batches: int = 1,
        buffers: PyTree = None, *, maximize: bool = False,
    ) -> None:  # fmt: skip
        beta1, beta2 = betas
        options = {
            "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay,
            "lr_scale": lr_scale,
        }  # fmt: skip
        slots = ("mean", "largest")
        super().__init__(loss, options, slots, gradient_transform, micro_batches, buffers, maximize)

    @override
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        g, beta1 = self.decayed(g, u, options), options["beta1"]
        mean = torch.lerp(slots["mean"], g, 1 - beta1)
        largest = torch.maximum(slots["largest"] * options["beta2"], g.abs() + options["eps"])
        first = (1 - beta1 ** steps_with(k)).to(u.dtype)
        rate = lr * options["lr_scale"] / first
        return torch.addcdiv(u, mean * rate, largest, value=-1), {"mean": mean, "largest": largest}
