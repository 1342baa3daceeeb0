"""What an inner optimiser is: a state, where it begins, and the parameters in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeVar

from odeopt.tools.captured import captured_values
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.types import PyTree

Bound = TypeVar("Bound")
Bound_co = TypeVar("Bound_co", covariant=True)


class Binder(Protocol[Bound_co]):
    """Makes something of an inner optimiser, by its kind."""

    def field(self, inner: Any) -> Bound_co:
        """Of a `Field`."""
        ...

    def rule(self, inner: Any) -> Bound_co:
        """Of an `UpdateRule` that is differentiated as a whole."""
        ...

    def gradient_rule(self, inner: Any) -> Bound_co:
        """Of a `GradientRule`."""
        ...


class InnerOptimizer(KnownKeywords, ABC):
    """The common part of a `Field` and an `UpdateRule`.

    A state is any pytree of floating-point tensors of one dtype. All methods are pure functions of
    their arguments: a tensor that requires grad and is not an argument raises
    `CapturedTensorError` when the optimiser is first evaluated.
    """

    def init(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        """The initial state and the constants (e.g. a proximal centre), both differentiable."""
        return params, ()

    def readout(self, state: PyTree) -> PyTree:
        """The parameters contained in a state; it is the identity by default."""
        return state

    @abstractmethod
    def bind(self, binder: Binder[Bound]) -> Bound:
        """Give itself to the method of the binder that is for its kind."""

    def captured(self) -> tuple[Any, ...]:
        """The numbers and tensors beside its arguments on which its evaluations depend.

        Compiled kernels are kept for them. By default they are looked for in what it holds: losses
        and what these capture.
        """
        return captured_values(self)

    def outer_keywords(self, state: PyTree) -> dict[str, Any]:
        """What of a state the outer loss gets by keyword beside the parameters; {} by default."""
        return {}
