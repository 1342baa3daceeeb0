"""The inputs of a velocity beside t and y, flat, so that kernels can be batched over tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from odeopt.tools.types import Tensors


class Theta(NamedTuple):
    """The differentiable inputs of a velocity beside t and y, as flat tuples of tensors."""

    shared: Tensors
    """From consts and hparams: one for all tasks."""
    batch: Tensors
    """From the batch: one per task."""

    def of_task(self, task: int) -> Theta:
        """What belongs to one of several tasks."""
        return Theta(self.shared, tuple(leaf[task] for leaf in self.batch))


class Data(NamedTuple):
    """The inputs that are not differentiated (labels, indices), laid out like `Theta`."""

    shared: Tensors
    batch: Tensors

    def of_task(self, task: int) -> Data:
        """What belongs to one of several tasks."""
        return Data(self.shared, tuple(leaf[task] for leaf in self.batch))


def scale_theta(theta: Theta, factor: Tensor) -> Theta:
    """A theta times a 0-dim tensor, in the dtypes of its leaves."""
    return Theta(*(tuple(leaf * factor.to(leaf.dtype) for leaf in part) for part in theta))


def add_thetas(thetas: Sequence[Theta]) -> Theta:
    """The sum of thetas of one structure."""
    total = thetas[0]
    for theta in thetas[1:]:
        total = Theta(
            *(
                tuple(x + y for x, y in zip(mine, other, strict=True))
                for mine, other in zip(total, theta, strict=True)
            )
        )
    return total


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
