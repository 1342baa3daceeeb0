"""What a field is: an inner optimiser seen as an ordinary differential equation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from odeopt.errors import CompatibilityError, InputError
from odeopt.inner.base import Binder, Bound, InnerOptimizer
from odeopt.tools import autodiff, tree
from odeopt.tools.arguments import takes
from odeopt.tools.shown import shown
from odeopt.tools.types import PyTree


class Field(InnerOptimizer):
    r"""A velocity field $dy/dt = f(t, y; \text{consts}, \text{hparams}, \text{batch})$.

    A subclass writes `velocity`. By default its state is the parameters themselves; one with a
    larger state, e.g. with a velocity of its own, overrides `init` and `readout`. Everything is a
    pytree without a task dimension: tasks are batched from outside.

    References:
        Li et al. 2023, "Meta-Learning with Adjoint Methods", section 3.1.
    """

    @override
    def bind(self, binder: Binder[Bound]) -> Bound:
        return binder.field(self)

    @property
    def is_slope(self) -> bool:
        """Whether the velocity is minus the gradient of a potential and nothing else.

        It is then taken w.r.t. all entries of the state as one vector, which saves time.
        """
        return False

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

    @property
    @override
    def is_slope(self) -> bool:
        return type(self).velocity is GradientField.velocity

    @abstractmethod
    def potential(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> Tensor:
        """The potential, a scalar tensor."""

    @override
    def velocity(
        self, t: Tensor, state: PyTree, consts: PyTree, hparams: PyTree, batch: PyTree
    ) -> PyTree:
        gradient = autodiff.gradient(lambda y: self.potential(t, y, consts, hparams, batch), state)
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
        InputError: if it is neither, or the function takes other arguments.
        CompatibilityError: if the function brings callbacks of torchdiffeq.
    """
    if isinstance(field, InnerOptimizer):
        return field
    if isinstance(field, type) or not callable(field):
        raise InputError(
            f"the inner optimiser is {shown(field)}; expected a Field instance such as"
            " GradientFlow(loss), an UpdateRule such as Adam(loss), or a function velocity(t,"
            " state, consts, hparams, batch). An optimizer of torch.optim goes, with its module, to"
            " odeopt.RecordedLoop."
        )
    _check_velocity(field)
    return CallableField(field)


def _check_velocity(velocity: Callable[..., Any]) -> None:
    """What torchdiffeq's users may bring with them is not passed over in silence."""
    called = velocity.forward if isinstance(velocity, nn.Module) else velocity
    if not takes(called, (None,) * 5, {}):
        raise InputError(
            "the velocity cannot be called with (t, state, consts, hparams, batch): give it these"
            " arguments. One of torchdiffeq, f(t, y), is passed as"
            " lambda t, y, consts, hparams, batch: f(t, y), its parameters in hparams."
            " A model to be trained goes to odeopt.RecordedLoop, or through odeopt.from_module."
        )
    callbacks = [name for name in _CALLBACKS if hasattr(velocity, name)]
    if callbacks:
        raise CompatibilityError(
            f"the velocity has the callback {callbacks[0]}, which torchdiffeq calls and odeopt does"
            " not: take it away. Result.stats counts steps and evaluations, and a grid with"
            " observe= hands out states on the way."
        )


_CALLBACKS = tuple(
    f"callback_{kind}{sweep}"
    for sweep in ("", "_adjoint")
    for kind in ("step", "accept_step", "reject_step")
)
