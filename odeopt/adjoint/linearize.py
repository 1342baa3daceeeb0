"""How a velocity is differentiated: exchangeable modes of the Hessian-vector product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError, InputError
from odeopt.solver.dynamics import Cotangents, Data, FlatField, Linearization, Theta
from odeopt.tools import autodiff
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.seeds import random_state, restore_random_state
from odeopt.tools.shown import shown


class Differentiation(KnownKeywords, ABC):
    """Makes linearisations of a flat field."""

    value_cost: int
    """Gradient evaluations for a value that is asked for before the first pullback."""

    respects_no_grad: bool = True
    """Whether what a loss computes under `torch.no_grad` counts as constant."""

    @abstractmethod
    def linearize(
        self, field: FlatField, t: Tensor, y: Tensor, theta: Theta, data: Data
    ) -> Linearization:
        """The velocity at (t, y, theta), with its vector-Jacobian products."""


def check_differentiation(value: object) -> Differentiation:
    """The value, `ReverseMode()` if it is None.

    Raises:
        InputError: if it is anything else than a `Differentiation`.
    """
    if value is None:
        return ReverseMode()
    if not isinstance(value, Differentiation):
        raise InputError(
            f"differentiation is {shown(value)}; expected ReverseMode() or ForwardOverReverse()."
        )
    return value


@final
class ReverseMode(Differentiation):
    r"""$f_y^\top\lambda$ by reverse mode; for gradient fields, reverse over reverse.

    The default; it works for every field. It is made by plain autograd, and by `torch.func.vjp`
    over tasks, inside transforms, and where kernels are recorded.

    Cost: the first product about 2.7 gradients in eager torch and a further one at the same point
    about 1.7, since the graph of the gradient is kept.

    References:
        Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """

    value_cost = 0

    @override
    def linearize(
        self, field: FlatField, t: Tensor, y: Tensor, theta: Theta, data: Data
    ) -> Linearization:
        def velocity(t: Tensor, y: Tensor, theta: Theta) -> Tensor:
            return field.velocity(t, y, theta, data)

        return _Reverse(*autodiff.vjp(velocity, t, y, theta))


@final
class ForwardOverReverse(Differentiation):
    r"""One forward-mode pass through the gradient of the potential: gradient fields only.

    Along $(\lambda, 0)$ the tangents of $(\nabla_y\Phi, \nabla_\theta\Phi)$ are $(H\lambda,
    (\partial_\theta\partial_y\Phi)^\top\lambda)$ by symmetry.

    Cost: 3 to 5 gradients in eager torch, which makes it the slower choice for small models; it
    keeps no second tape.

    Raises:
        CompatibilityError: in the solve, if the field has no potential, or its loss uses
            `torch.no_grad`, which a forward pass does not respect.

    References:
        Pearlmutter 1994; Kemaev et al. 2025, "Scalable Meta-Learning via Mixed-Mode
        Differentiation", arXiv 2505.00793.
    """

    value_cost = 1
    respects_no_grad = False  # tangents pass through

    @override
    def linearize(
        self, field: FlatField, t: Tensor, y: Tensor, theta: Theta, data: Data
    ) -> Linearization:
        potential = field.potential
        if potential is None:
            raise CompatibilityError(
                "ForwardOverReverse needs a field with a scalar potential (a GradientField such as"
                " GradientFlow or RegularizedFlow); use ReverseMode() for this field."
            )

        def gradients(y: Tensor) -> tuple[Tensor, Tensor, Theta]:
            return torch.func.grad(potential, argnums=(1, 0, 2))(t, y, theta, data)

        return _ForwardOverReverse(gradients, y)


class _Reverse(Linearization):
    def __init__(self, value: Tensor, pullback: Any) -> None:
        self._value, self._pullback = value, pullback

    @property
    @override
    def value(self) -> Tensor:
        return self._value

    @override
    def pullback(self, cotangent: Tensor) -> Cotangents:
        return Cotangents(*self._pullback(cotangent))


class _ForwardOverReverse(Linearization):
    """Evaluates the gradients for each product, every time with the same random numbers."""

    def __init__(self, gradients: Any, y: Tensor) -> None:
        self._gradients = gradients
        self._y = y
        self._value: Tensor | None = None
        self._random = random_state()

    @property
    @override
    def value(self) -> Tensor:
        if self._value is None:
            restore_random_state(self._random)
            self._value = torch.neg(self._gradients(self._y)[0])
        return self._value

    @override
    def pullback(self, cotangent: Tensor) -> Cotangents:
        restore_random_state(self._random)
        derivative: Any = torch.func.jvp(self._gradients, (self._y,), (cotangent,))
        (gradient, _, _), (g_y, g_t, g_theta) = derivative
        self._value = -gradient
        return Cotangents(-g_t, -g_y, Theta(*(tuple(-leaf for leaf in part) for part in g_theta)))
