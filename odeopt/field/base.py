"""What a field is: an inner optimiser seen as an ordinary differential equation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt import tree
from odeopt.errors import InputError
from odeopt.inner import InnerOptimizer
from odeopt.types import PyTree


class Field(InnerOptimizer):
    r"""A velocity field $dy/dt = f(t, y; \text{consts}, \text{hparams}, \text{batch})$.

    A subclass writes `velocity`. By default its state is the parameters themselves; one with a
    larger state, e.g. with a velocity of its own, overrides `init` and `readout`. Everything is a
    pytree without a task dimension: tasks are batched from outside.

    References:
        Li et al. 2023, "Meta-Learning with Adjoint Methods", section 3.1.
    """

    @abstractmethod
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        """dy/dt, a pytree with the structure and shapes of the state; t is a 0-dim tensor."""


class GradientField(Field):
    r"""A field $f = -\nabla_y \Phi$ with a scalar potential, so that its Jacobian is symmetric.

    A subclass writes `potential`. `StabilizedRK`, `ImplicitAdjoint` and `ForwardOverReverse` need
    such a field. Cost: one gradient of the potential per velocity.
    """

    @abstractmethod
    def potential(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> Tensor:
        """The potential, a scalar tensor."""

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        gradient = torch.func.grad(lambda y: self.potential(t, y, consts, hparams, batch))(state)
        return tree.map_tensors(torch.neg, gradient)


@final
class CallableField(Field):
    """A plain function `velocity(t, state, consts, hparams, batch)` as a field; consts is ()."""

    def __init__(self, velocity: Callable[..., PyTree]) -> None:
        self._velocity = velocity

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        return self._velocity(t, state, consts, hparams, batch)


def as_field(field: Any) -> InnerOptimizer:
    """A field or update rule as it is; a function as a `CallableField`.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(field, InnerOptimizer):
        return field
    if isinstance(field, type) or not callable(field):
        raise InputError(
            f"the inner optimiser is {field!r}; expected a Field instance such as"
            " GradientFlow(loss), an UpdateRule such as Adam(loss), or a function velocity(t,"
            " state, consts, hparams, batch)."
        )
    return CallableField(field)
