"""The kernels of a method, stage by stage.

Where steps have many different numbers of stages, each would be a trace of its own, and a long
one. Compiled are therefore the velocity and its pullback alone; the recurrence around them runs
in Python on the states of all tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Interval, Pulled
from odeopt.adjoint.discrete import as_pulled
from odeopt.solver.base import Stepping, StepSolver
from odeopt.solver.dynamics import Cotangents, FlatField, Linearization
from odeopt.solver.error_control import Attempt, ErrorControlled
from odeopt.tools.types import Velocity


class Stagewise:
    """What a step kernel and a pull kernel do, with t and dt of shape [] or [tasks].

    Args:
        solver: one with `by_stage`.
        stepping: the inner optimiser.
        velocity: `(t, y, data=...) -> dy/dt`.
        pullback: `(t, y, cotangent, data=...) -> (dy/dt, Cotangents)`.
    """

    def __init__(
        self,
        solver: StepSolver,
        stepping: Stepping,
        velocity: Callable[..., Tensor],
        pullback: Callable[..., tuple[Tensor, Cotangents]],
    ) -> None:
        self._solver, self._stepping = solver, stepping
        self._velocity, self._pullback = velocity, pullback

    def step(self, t: Tensor, dt: Tensor, y: Tensor, data: Any = None) -> Tensor:
        """The state after a step."""
        return self._solver.step(self._at(data), t, dt, y)

    def attempt(self, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor) -> Attempt:
        """A tried step."""
        assert isinstance(self._solver, ErrorControlled), "asked for by its stepper"
        return self._solver.attempt(self._at(None), t, dt, y, slope)

    def pull(
        self, t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, data: Any = None
    ) -> Pulled:
        """The transposed step, with the graph of one stage at a time."""

        def linearize(field: FlatField, s: Tensor, u: Tensor, *inputs: Any) -> Linearization:
            del field, inputs  # bound in the kernels
            return _Stage(self._at(data), self._pullback, s, u, data)

        stepping = self._stepping._replace(differentiate=linearize)
        step = self._solver.pull(stepping, t, dt, y0, lam)
        return as_pulled(step, Interval(t, dt, y0, y1))

    @property
    def cost(self) -> Cost:
        """Of a pull: the stages are made again before they are transposed."""
        return Cost(gradients=self._solver.stages - 1, hvps=self._solver.stages)

    def _at(self, data: Any) -> Velocity:
        if data is None:
            return self._velocity
        return lambda t, y: self._velocity(t, y, data=data)


class _Stage(Linearization):
    """A velocity with its value and its pullback from two kernels."""

    def __init__(
        self, velocity: Velocity, pullback: Callable[..., tuple[Tensor, Cotangents]],
        t: Tensor, y: Tensor, data: Any,
    ) -> None:  # fmt: skip
        self._velocity, self._kernel = velocity, pullback
        self._point, self._data = (t, y), data
        self._value: Tensor | None = None

    @property
    @override
    def value(self) -> Tensor:
        found = self._value
        if found is None:
            found = self._value = self._velocity(*self._point)
        return found

    @override
    def pullback(self, cotangent: Tensor) -> Cotangents:
        bound = {} if self._data is None else {"data": self._data}
        self._value, cotangents = self._kernel(*self._point, cotangent, **bound)
        return cotangents
