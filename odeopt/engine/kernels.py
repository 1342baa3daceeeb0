"""The two kernels, a step and a pull, on flat states and batched over tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from odeopt.adjoint.base import Cost, Interval, LocalAdjoint
from odeopt.adjoint.linearize import Differentiation, ReverseMode
from odeopt.engine.compile.compiler import CompiledKernel, Compiler
from odeopt.engine.evaluation import evaluation
from odeopt.engine.flat import BoundField, BoundRule
from odeopt.engine.pulled import Noted, note
from odeopt.engine.stagewise import Stagewise
from odeopt.engine.stats import Stats
from odeopt.engine.step_inputs import StepInputs
from odeopt.solver.base import Solver, Stepping, StepSolver
from odeopt.solver.dynamics import Cotangents, Data, Theta
from odeopt.solver.error_control import Attempt, ErrorControlled


@dataclass(frozen=True, eq=False)
class Kernels:
    """Pure kernels of one solve.

    With tasks, t, dt, y and lam carry a leading task dimension, theta.batch and data.batch too,
    and so do all results; theta.shared and data.shared are common.
    """

    dynamics: BoundField | BoundRule
    solver: Solver
    theta: Theta
    data: Data
    tasks: int | None
    steps: StepInputs | None = None
    """What changes from step to step; None if nothing does."""
    compiler: Compiler | None = None
    captured: tuple[Any, ...] = ()
    """What the loss captures, on which compiled kernels depend."""
    stats: Stats = field(default_factory=Stats)

    def at(self, method: int | None) -> Kernels:
        """The kernels of steps with a method of the solver, see `Solver.made_with`."""
        return self if method is None else replace(self, solver=self.solver.made_with(method))

    @property
    def step_solver(self) -> StepSolver:
        """The solver, where it makes steps of its own."""
        assert isinstance(self.solver, StepSolver), "grid solvers have their own stepper"
        return self.solver

    @property
    def attempt_gradients(self) -> int:
        """Gradient evaluations of an attempt."""
        return self._error_controlled.attempt_gradients

    @property
    def _error_controlled(self) -> ErrorControlled:
        assert isinstance(self.solver, ErrorControlled), "asked for by its stepper"
        return self.solver

    @property
    def flat(self) -> BoundField:
        """The field; only solvers and adjoints of fields ask for it."""
        assert isinstance(self.dynamics, BoundField), "checked when the choices are made"
        return self.dynamics

    def stepping(self, differentiation: Differentiation, theta: Theta, data: Data) -> Stepping:
        """The inner optimiser with theta and data bound, for use inside a kernel."""
        return Stepping(self.dynamics, differentiation.linearize, theta, data)

    def batched(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """A kernel(*tensors, theta, data) over all tasks at once."""
        if self.tasks is None:
            return evaluation()(kernel)

        @evaluation()
        def over_tasks(*args: Any) -> Any:
            lead = (0,) * (len(args) - 2)
            in_dims = (*lead, Theta(None, 0), Data(None, 0))  # type: ignore[arg-type]
            randomness = "error" if self.steps is None else "different"
            return torch.func.vmap(kernel, in_dims=in_dims, randomness=randomness)(*args)

        return over_tasks

    def velocity(self) -> Callable[..., Tensor]:
        """`(t, y) -> dy/dt`."""
        return self._bind("velocity", self.flat.velocity)

    def step(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """`(k, t, dt, y) -> y` after step k of a step solver."""
        solver = self.step_solver
        stagewise = self._stagewise(_NO_DERIVATIVE)
        if stagewise is not None:
            return self._at_steps(stagewise.step)

        def kernel(t: Tensor, dt: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
            return solver.advance(self.stepping(_NO_DERIVATIVE, theta, data), t, dt, y)

        return self._at_steps(self._bind("step", kernel))

    def pull(self, adjoint: LocalAdjoint) -> Callable[[int, Interval, Tensor], Noted]:
        """`(k, interval, lam) -> Noted`, for an interval that begins with step k."""
        stagewise = self._stagewise(adjoint.differentiation)
        if stagewise is not None and adjoint.pulls_steps:
            at_step = self._at_steps(stagewise.pull)
            return lambda k, interval, lam: note(at_step(k, *interval, lam))

        def kernel(
            t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, theta: Theta, data: Data
        ) -> Noted:
            stepping = self.stepping(adjoint.differentiation, theta, data)
            return note(adjoint.pull(self.solver, stepping, Interval(t, dt, y0, y1), lam))

        bound = self._at_steps(self._bind("pull", kernel))
        return lambda k, interval, lam: bound(k, *interval, lam)

    def cost(self, adjoint: LocalAdjoint) -> Cost:
        """Of one pull."""
        stagewise = self._stagewise(adjoint.differentiation)
        if stagewise is not None and adjoint.pulls_steps:
            return stagewise.cost
        return adjoint.cost(self.solver)

    def attempt(self) -> Callable[..., Attempt]:
        """`(t, dt, y, slope) -> Attempt` of an adaptive solver."""
        solver = self._error_controlled
        stagewise = self._stagewise(_NO_DERIVATIVE)
        if stagewise is not None:
            return stagewise.attempt

        def kernel(
            t: Tensor, dt: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data
        ) -> Attempt:
            return solver.attempt(self._velocity_at(theta, data), t, dt, y, slope)

        return self._bind("attempt", kernel)

    def initial_dt(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`(t, y, slope) -> dt` of an adaptive solver."""
        solver = self._error_controlled

        def kernel(t: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data) -> Tensor:
            return solver.initial_dt(self._velocity_at(theta, data), t, y, slope)

        return self._bind("initial_dt", kernel)

    def _stagewise(self, differentiation: Differentiation) -> Stagewise | None:
        """The solver stage by stage, where whole steps would be too much to compile."""
        solver = self.solver
        if self.compiler is None or not isinstance(solver, StepSolver) or not solver.by_stage:
            return None

        def pullback(
            t: Tensor, y: Tensor, cotangent: Tensor, theta: Theta, data: Data
        ) -> tuple[Tensor, Cotangents]:
            point = self.stepping(differentiation, theta, data).linearize(t, y)
            cotangents = point.pullback(cotangent)
            return point.value, cotangents

        stepping = self.stepping(differentiation, self.theta, self.data)
        return Stagewise(solver, stepping, self.velocity(), self._bind("pullback", pullback))

    def _velocity_at(self, theta: Theta, data: Data) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: self.flat.velocity(t, y, theta, data)

    def _bind(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        batched, theta = self.batched(kernel), self.theta
        if self.compiler is None:

            def eager(*tensors: Tensor, data: Data = self.data) -> Any:
                return batched(*tensors, theta, data)

            return eager
        layout = (self.dynamics.layout, self.tasks, self.captured)
        return CompiledKernel(self.compiler, name, layout, batched, theta, self.data, self.stats)

    def _at_steps(self, bound: Callable[..., Any]) -> Callable[..., Any]:
        """`(k, *tensors)`, with the data and random numbers of step k."""
        steps = self.steps
        if steps is None:
            return lambda k, *tensors: bound(*tensors)

        def at_step(k: int, *tensors: Tensor) -> Any:
            with steps.random(k, tensors[-1].device):
                return bound(*tensors, data=steps.data(k))

        return at_step


_NO_DERIVATIVE = ReverseMode()
"""What a forward step would be differentiated with, if it were."""
