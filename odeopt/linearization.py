"""Linearised velocities: the interface through which adjoints differentiate a field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from odeopt.theta import Data, Theta, scale_theta


class Cotangents(NamedTuple):
    """Gradients w.r.t. the inputs of a velocity."""

    t: Tensor
    y: Tensor
    theta: Theta

    def scale(self, factor: Tensor) -> Cotangents:
        """All of them times a 0-dim tensor."""
        return Cotangents(factor * self.t, factor * self.y, scale_theta(self.theta, factor))


class FlatField(Protocol):
    """A field on flat states; `potential` is None unless the field is a gradient field."""

    def velocity(self, t: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        """dy/dt of shape [d]."""
        ...

    @property
    def potential(self) -> Callable[[Tensor, Tensor, Theta, Data], Tensor] | None:
        """The scalar whose negative gradient is the velocity."""
        ...


class Linearization(ABC):
    """A velocity at one point, with its vector-Jacobian products."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """The velocity itself, shape [d]."""

    @abstractmethod
    def pullback(self, cotangent: Tensor) -> Cotangents:
        """The gradient of <cotangent, velocity> w.r.t. t, y and theta."""


Differentiate = Callable[[FlatField, Tensor, Tensor, Theta, Data], Linearization]
"""`differentiate(field, t, y, theta, data)`: how fields are linearised."""
