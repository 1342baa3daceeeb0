"""The two kernels, a step and a pull, on flat states and batched over tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Interval, LocalAdjoint, Pulled
from odeopt.adjoint.linearize import Differentiation
from odeopt.compilation import CompiledKernel, Compiler
from odeopt.field.base import Field, GradientField
from odeopt.linearization import FlatField, Linearization
from odeopt.solver.adaptive import Adaptive, Attempt
from odeopt.solver.base import Solver, Stepping, StepSolver
from odeopt.stats import Stats
from odeopt.theta import Data, Theta
from odeopt.tree import Partition, Ravel

Potential = Callable[[Tensor, Tensor, Theta, Data], Tensor]


class Layout(NamedTuple):
    """How flat states and inputs become the pytrees that a field is written in."""

    state: Ravel
    shared: Partition
    """Of the pair (consts, hparams)."""
    batch: Partition


class BoundField(FlatField):
    """A field that reads and writes flat vectors."""

    def __init__(self, inner: Field, layout: Layout) -> None:
        self._field = inner
        self.layout = layout

    @override
    def velocity(self, t: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        slope = self._field.velocity(t, *self._unpack(y, theta, data))
        return self.layout.state.flatten(slope, "the velocity")

    @property
    @override
    def potential(self) -> Potential | None:
        inner = self._field
        if not isinstance(inner, GradientField):
            return None
        return lambda t, y, theta, data: inner.potential(t, *self._unpack(y, theta, data))

    def _unpack(self, y: Tensor, theta: Theta, data: Data) -> tuple[Any, Any, Any, Any]:
        consts, hparams = self.layout.shared.merge(theta.shared, data.shared)
        batch = self.layout.batch.merge(theta.batch, data.batch)
        return self.layout.state.unflatten(y), consts, hparams, batch


@dataclass(frozen=True)
class Kernels:
    """Pure kernels of one solve.

    With tasks, t, dt, y and lam carry a leading task dimension, theta.batch and data.batch too,
    and so do all results; theta.shared and data.shared are common.
    """

    flat: BoundField
    solver: Solver
    theta: Theta
    data: Data
    tasks: int | None
    compiler: Compiler | None = None
    stats: Stats = field(default_factory=Stats)

    def stepping(self, differentiation: Differentiation, theta: Theta, data: Data) -> Stepping:
        """The field with theta and data bound, for use inside a kernel."""

        def linearize(t: Tensor, y: Tensor) -> Linearization:
            return differentiation.linearize(self.flat, t, y, theta, data)

        return Stepping(self.flat, linearize, theta, data)

    def batched(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """A kernel(*tensors, theta, data) over all tasks at once."""
        if self.tasks is None:
            return kernel

        def over_tasks(*args: Any) -> Any:
            lead = (0,) * (len(args) - 2)
            in_dims = (*lead, Theta(None, 0), Data(None, 0))  # type: ignore[arg-type]
            return torch.func.vmap(kernel, in_dims=in_dims)(*args)

        return over_tasks

    def velocity(self) -> Callable[[Tensor, Tensor], Tensor]:
        """`(t, y) -> dy/dt`."""
        return self._bind("velocity", self.flat.velocity, guard=True)

    def step(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`(t, dt, y) -> y` after one step of a step solver."""
        solver = self.solver
        assert isinstance(solver, StepSolver), "checked before"

        def kernel(t: Tensor, dt: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
            return solver.step(self._velocity_at(theta, data), t, dt, y)

        return self._bind("step", kernel, guard=True)

    def pull(self, adjoint: LocalAdjoint) -> Callable[[Interval, Tensor], Pulled]:
        """`(interval, lam) -> Pulled`."""

        def kernel(
            t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, theta: Theta, data: Data
        ) -> Pulled:
            stepping = self.stepping(adjoint.differentiation, theta, data)
            return adjoint.pull(self.solver, stepping, Interval(t, dt, y0, y1), lam)

        bound = self._bind("pull", kernel)
        return lambda interval, lam: bound(*interval, lam)

    def attempt(self, solver: Adaptive) -> Callable[..., Attempt]:
        """`(t, dt, y, slope) -> Attempt` of an adaptive solver."""

        def kernel(
            t: Tensor, dt: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data
        ) -> Attempt:
            return solver.attempt(self._velocity_at(theta, data), t, dt, y, slope)

        return self._bind("attempt", kernel, guard=True)

    def initial_dt(self, solver: Adaptive) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`(t, y, slope) -> dt` of an adaptive solver."""

        def kernel(t: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data) -> Tensor:
            return solver.initial_dt(self._velocity_at(theta, data), t, y, slope)

        return self._bind("initial_dt", kernel)

    def _velocity_at(self, theta: Theta, data: Data) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: self.flat.velocity(t, y, theta, data)

    def _bind(
        self, name: str, kernel: Callable[..., Any], guard: bool = False
    ) -> Callable[..., Any]:
        batched, bound = self.batched(kernel), (self.theta, self.data)
        if self.compiler is None:
            return lambda *tensors: batched(*tensors, *bound)
        layout = (self.flat.layout, self.tasks)
        return CompiledKernel(self.compiler, name, layout, batched, bound, self.stats, guard)
