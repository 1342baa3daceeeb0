"""The two kernels, a step and a pull, on flat states and batched over tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Cost, Diagnostics, Interval, LocalAdjoint, Pulled
from odeopt.adjoint.discrete import as_pulled
from odeopt.adjoint.linearize import Differentiation, ReverseMode
from odeopt.engine.compile.compiler import CompiledKernel, Compiler
from odeopt.engine.flat import BoundField, BoundRule
from odeopt.engine.many import in_chunks, is_many, one_or_many
from odeopt.engine.stats import Stats
from odeopt.engine.tape import Pullback, Tape
from odeopt.engine.turns import in_turn
from odeopt.engine.watch import evaluation
from odeopt.errors import InputError, NondeterminismError
from odeopt.inner.stream import Stream
from odeopt.solver.base import RecordedStep, Solver, Stepping, StepSolver
from odeopt.solver.dynamics import Cotangents, Data, FlatField, Linearization, Theta
from odeopt.solver.error_control import Attempt, ErrorControlled
from odeopt.tools import tree
from odeopt.tools.memory import measured
from odeopt.tools.seeds import seeded
from odeopt.tools.types import PyTree, Velocity

_NO_DERIVATIVE = ReverseMode()
"""What a forward step would be differentiated with, if it were."""


class Scalars(NamedTuple):
    """The numbers that belong to one pull, or to many: all of one shape."""

    t: Tensor
    """The gradient w.r.t. the start of the interval."""
    dt: Tensor
    """The gradient w.r.t. its length."""
    step_ratio: Tensor
    """See `Diagnostics`."""
    defect: Tensor
    """See `Diagnostics`."""
    gap: Tensor
    """See `Diagnostics`."""
    norm: Tensor
    """Of lam at the start of the interval."""

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Out of a tensor of shape [..., 6]."""
        return cls(*rows.unbind(-1))


class PullResult(NamedTuple):
    """A `Pulled` of one task or of all in few tensors, for each costs time in every step."""

    lam: Tensor
    theta: Theta
    scalars: Tensor
    """Shape [6], with tasks [tasks, 6]."""

    @classmethod
    def of(cls, pulled: Pulled) -> Self:
        """A pull with the norm of its lam."""
        norm = torch.linalg.vector_norm(pulled.lam, dim=-1)
        step_ratio, defect, gap = pulled.diagnostics
        gap = torch.zeros_like(pulled.dt) if gap is None else gap
        scalars = Scalars(pulled.t, pulled.dt, step_ratio, defect, gap, norm)
        return cls(pulled.lam, pulled.theta, torch.stack(scalars, dim=-1))


PullKernel = Callable[[int, Interval, Tensor], PullResult]
"""`(k, interval, lam) -> PullResult` over an interval that begins with step k."""


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What changes from step to step: the batch of a stream and its random numbers.

    Attributes:
        stream: the stream.
        layout: the structure of its first batch, which every other must have.
        shared: the data that does not change.
    """

    stream: Stream
    layout: tree.Partition
    shared: tree.Tensors

    def data(self, k: int) -> Data:
        """The data of step k.

        Raises:
            InputError: if its batch has another structure than the first.
        """
        batch = self.stream(k)
        leaves = self._read(batch)
        if leaves is not None:
            return Data(self.shared, tuple(leaves))
        partition, _, data = tree.partition(batch, lambda leaf: False)
        if partition != self.layout:
            raise InputError(
                f"the stream's batch {k} has the structure {partition.spec}, or other numbers in"
                f" it, than batch 0, which has {self.layout.spec}: every batch needs the same"
                " structure."
            )
        return Data(self.shared, data)

    def random(self, k: int, device: torch.device) -> AbstractContextManager[None]:
        """A block in which random numbers are those of step k."""
        seed = self.stream.step_seed(k)
        return nullcontext() if seed is None else seeded(seed, device)

    @cached_property
    def _read(self) -> Callable[[PyTree], list[Tensor] | None]:
        if set(self.layout.roles) != {"data"}:
            return lambda batch: None
        return tree.reader(self.layout.spec)


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
    tape: Tape | None = None
    """Where steps are recorded as they are made; None if they are not."""
    differentiation: Differentiation = _NO_DERIVATIVE
    """What recorded steps are differentiated with."""
    turns: bool = False
    """Whether tasks are taken one after the other."""
    chunk_size: int | None = None
    """How many cotangents of many outer losses are pulled at once; None for all of them."""

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
    def _by_stage(self) -> bool:
        """Whether the velocity and its pullback are compiled alone.

        Where steps have many different numbers of stages, each would be a trace of its own, and a
        long one. The recurrence then runs in Python on the states of all tasks at once.
        """
        solver = self.solver
        return self.compiler is not None and isinstance(solver, StepSolver) and solver.by_stage

    def stepping(self, differentiation: Differentiation, theta: Theta, data: Data) -> Stepping:
        """The inner optimiser with theta and data bound, for use inside a kernel."""
        return Stepping(self.dynamics, differentiation.linearize, theta, data)

    def batched(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """A kernel(*tensors, theta, data) over all tasks at once."""
        if self.tasks is None:
            return evaluation()(kernel)
        if self.turns:
            return evaluation()(in_turn(kernel, self.tasks))

        @evaluation()
        def over_tasks(*args: Any) -> Any:
            lead = (0,) * (len(args) - 2)
            in_dims = (*lead, Theta(None, 0), Data(None, 0))  # type: ignore[arg-type]
            randomness = "error" if self.steps is None else "different"
            return torch.func.vmap(kernel, in_dims=in_dims, randomness=randomness)(*args)

        return over_tasks

    def velocity(self) -> Callable[..., Tensor]:
        """`(t, y) -> dy/dt`; only solvers and adjoints of fields ask for it."""
        assert isinstance(self.dynamics, BoundField), "checked when the choices are made"
        return self._bind("velocity", self.batched(self.dynamics.velocity))

    def step(self) -> Callable[[int, Tensor, Tensor, Tensor], Tensor]:
        """`(k, t, dt, y) -> y` after step k of a step solver."""
        solver = self.step_solver
        if self._by_stage:
            velocity = self.velocity()
            return self._at_steps(
                lambda t, dt, y, data=None: solver.step(partial(velocity, data=data), t, dt, y)
            )

        def kernel(t: Tensor, dt: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
            return solver.advance(self.stepping(_NO_DERIVATIVE, theta, data), t, dt, y)

        return self._recording(self._at_steps(self._bind("step", self.batched(kernel))))

    def _recording(self, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The steps that the tape wants are made with their graphs, all others by `step`."""
        tape, solver = self.tape, self.step_solver
        if tape is None or not (solver.records and self.dynamics.records):
            return step

        def kernel(t: Tensor, dt: Tensor, y: Tensor, theta: Theta, data: Data) -> RecordedStep:
            return solver.record(self.stepping(self.differentiation, theta, data), t, dt, y)

        recorded = self._at_steps(self._bind("record", self.batched(kernel)))

        def step_or_record(k: int, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
            if not tape.wants(k):
                return step(k, t, dt, y)
            return tape.record(k, lambda: recorded(k, t, dt, y))

        return step_or_record

    def pull(self, adjoint: LocalAdjoint) -> PullKernel:
        """The pull; with many outer losses lam has a leading dimension, and so do the results."""
        whole = self._pull_whole(adjoint)
        if not (self._by_stage and adjoint.pulls_steps):
            return whole
        at_step = self._at_steps(self._pull_by_stage(adjoint.differentiation))

        def pull(k: int, interval: Interval, lam: Tensor) -> PullResult:
            if is_many(lam, interval.y0):  # batched around all stages of a step
                return whole(k, interval, lam)
            return at_step(k, *interval, lam)

        return pull

    def _pull_whole(self, adjoint: LocalAdjoint) -> PullKernel:
        """The pull as one kernel; through the graph of the step where it was kept."""

        def kernel(
            t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, theta: Theta, data: Data
        ) -> PullResult:
            stepping = self.stepping(adjoint.differentiation, theta, data)
            interval = Interval(t, dt, y0, y1)
            return PullResult.of(adjoint.pull(self.solver, stepping, interval, lam))

        def of_any(
            t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, theta: Theta, data: Data
        ) -> PullResult:
            def one(lam: Tensor) -> PullResult:
                return batched(t, dt, y0, y1, lam, theta, data)

            return one_or_many(one, lam, y0)

        batched, tape = self.batched(kernel), self.tape

        @cache
        def bound(shape: torch.Size) -> Callable[..., PullResult]:
            """For cotangents of one shape, since a compiled kernel has that in it."""
            return self._at_steps(self._bind("pull", of_any))

        def pull(k: int, interval: Interval, lam: Tensor) -> PullResult:
            pullback = None if tape is None else tape.take(k)

            def own(lam: Tensor) -> PullResult:
                if pullback is None:
                    return bound(lam.shape)(k, *interval, lam)
                return self._pull_graph(pullback, interval, lam)

            many = is_many(lam, interval.y0)
            return in_chunks(own, lam, self.chunk_size) if many else own(lam)

        return pull

    @evaluation()
    def _pull_graph(self, pullback: Pullback, interval: Interval, lam: Tensor) -> PullResult:
        """The pull of a step through the graph that it was made with, so that there is no gap."""

        def one(lam: Tensor) -> PullResult:
            step, zero = pullback(lam), torch.zeros_like(interval.dt)
            diagnostics = Diagnostics(zero, zero, zero)
            return PullResult.of(Pulled(step.lam, step.t, step.dt, step.theta, diagnostics))

        try:
            return one_or_many(one, lam, interval.y0)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                raise NondeterminismError(_CHANGED) from error
            raise

    def pull_bytes(self, k: int, t: Tensor, dt: Tensor, y: Tensor) -> int | None:
        """About what one cotangent takes that is pulled through a step, of all tasks together.

        That is its own size and that of the step's graph; None where this cannot be measured.
        """
        tape = self.tape
        if tape is not None and tape.graph_bytes:
            return tape.graph_bytes + y.nbytes
        data = self.data if self.steps is None else self.steps.data(k)
        theta, tensors = self.theta, (t, dt, y)
        if self.tasks is not None:
            theta, data = theta.of_task(0), data.of_task(0)
            tensors = (t.reshape(-1)[0], dt.reshape(-1)[0], y[0])
        stepping, solver = self.stepping(self.differentiation, theta, data), self.solver
        self.stats.gradient_evaluations += solver.stages if isinstance(solver, StepSolver) else 1

        @evaluation()
        def make() -> object:
            if isinstance(solver, StepSolver):
                return solver.record(stepping, *tensors)
            return stepping.linearize(tensors[0], tensors[2])

        with nullcontext() if self.steps is None else self.steps.random(k, y.device):
            _, nbytes = measured(make, tree.tensors((tensors, theta, data)))
        return None if nbytes is None else (self.tasks or 1) * nbytes + y.nbytes

    def cost(self, adjoint: LocalAdjoint) -> Cost:
        """Of one pull; by stage, the stages are made again before they are transposed."""
        if self._by_stage and adjoint.pulls_steps:
            stages = self.step_solver.stages
            return Cost(gradients=stages - 1, hvps=stages)
        return adjoint.cost(self.solver)

    def attempt(self) -> Callable[..., Attempt]:
        """`(t, dt, y, slope) -> Attempt` of an adaptive solver."""
        solver = self._error_controlled
        if self._by_stage:
            return partial(solver.attempt, self.velocity())

        def kernel(
            t: Tensor, dt: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data
        ) -> Attempt:
            velocity = self.stepping(_NO_DERIVATIVE, theta, data).velocity
            return solver.attempt(velocity, t, dt, y, slope)

        return self._bind("attempt", self.batched(kernel))

    def initial_dt(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """`(t, y, slope) -> dt` of an adaptive solver."""
        solver = self._error_controlled

        def kernel(t: Tensor, y: Tensor, slope: Tensor, theta: Theta, data: Data) -> Tensor:
            velocity = self.stepping(_NO_DERIVATIVE, theta, data).velocity
            return solver.initial_dt(velocity, t, y, slope)

        return self._bind("initial_dt", self.batched(kernel))

    def _pull_by_stage(self, differentiation: Differentiation) -> Callable[..., PullResult]:
        """The transposed step on all tasks, with the graph of one stage at a time."""

        def kernel(
            t: Tensor, y: Tensor, cotangent: Tensor, theta: Theta, data: Data
        ) -> tuple[Tensor, Cotangents]:
            point = self.stepping(differentiation, theta, data).linearize(t, y)
            cotangents = point.pullback(cotangent)
            return point.value, cotangents

        velocity, pullback = self.velocity(), self._bind("pullback", self.batched(kernel))

        def pull(
            t: Tensor, dt: Tensor, y0: Tensor, y1: Tensor, lam: Tensor, data: Data | None = None
        ) -> PullResult:
            def linearize(field: FlatField, s: Tensor, u: Tensor, *inputs: Any) -> Linearization:
                del field, inputs  # bound in the kernels
                return _Stage(partial(velocity, data=data), partial(pullback, data=data), s, u)

            stepping = Stepping(self.dynamics, linearize, self.theta, self.data)
            step = self.step_solver.pull(stepping, t, dt, y0, lam)
            return PullResult.of(as_pulled(step, Interval(t, dt, y0, y1)))

        return pull

    def _bind(self, name: str, batched: Callable[..., Any]) -> Callable[..., Any]:
        """`(*tensors, data=...)`, with theta bound, and the solve's own data by default."""
        theta = self.theta
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


_CHANGED = (
    "a tensor that a step used was changed in place after the step was made: a batch, hparams, or a"
    " tensor that the loss itself changes. Pass copies, compute new tensors in the loss, or keep"
    " states in place of graphs with checkpoints=Every(1)."
)


class _Stage(Linearization):
    """A velocity with its value and its pullback from two kernels."""

    def __init__(
        self, velocity: Velocity, pullback: Callable[..., tuple[Tensor, Cotangents]],
        t: Tensor, y: Tensor,
    ) -> None:  # fmt: skip
        self._velocity, self._kernel, self._point = velocity, pullback, (t, y)
        self._value: Tensor | None = None

    @property
    @override
    def value(self) -> Tensor:
        if self._value is None:
            self._value = self._velocity(*self._point)
        return self._value

    @override
    def pullback(self, cotangent: Tensor) -> Cotangents:
        self._value, cotangents = self._kernel(*self._point, cotangent)
        return cotangents
