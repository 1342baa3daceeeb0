"""The autograd bridge: the two sweeps behind one `torch.autograd.Function`.

Every tensor that the backward sweep needs is an input or an output of the function, so that it
works under `torch.func.vmap` and `torch.func.grad` as well. An output must be neither an input
nor the same tensor as another output, which is why states are returned once each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Swept
from odeopt.engine.choices import Choices
from odeopt.engine.forward import Trajectory
from odeopt.engine.kept import Kept
from odeopt.engine.problem import Problem
from odeopt.engine.refinement import Refinement
from odeopt.engine.rows import Rows
from odeopt.engine.run import Run, rebuild_run, run_forward
from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.errors import SecondOrderError
from odeopt.gradient.probe import check_ends, ends_of_velocity
from odeopt.gradient.solved import Solved, is_visible, theta_gradients
from odeopt.gradient.status import drop_failed
from odeopt.grid import TimeGrid
from odeopt.solver.dynamics import Data, Theta
from odeopt.tools.transforms import requires_grad


@dataclass(eq=False)
class _Places:
    """Distinct states among the outputs, and who is where; None stands for y0."""

    states: list[Tensor] = field(default_factory=list[Tensor])
    kept: dict[int, int | None] = field(default_factory=dict[int, "int | None"])
    observed: dict[int, int | None] = field(default_factory=dict[int, "int | None"])
    positions: dict[int, int | None] = field(default_factory=dict[int, "int | None"])
    """Places of observed states by index of the user's grid."""
    before_end: int | None = None
    first: int = 0

    def fill(self, run: Run) -> None:
        """Note the states of a finished forward sweep."""
        trajectory, y0 = run.trajectory, run.problem.y0
        kept = trajectory.kept
        self.observed = {k: self._place(y, y0) for k, y in trajectory.observed.items()}
        for k, place in self.observed.items():
            position = run.stepper.grid_index(k)
            assert position is not None, "observed states are at grid times"
            self.positions[position] = place
        self.kept = {k: self._place(kept[k], y0) for k in kept.indices()}
        self.before_end = self._place(trajectory.before_end, y0)
        self.first = trajectory.first

    def trajectory(
        self, y0: Tensor, y_end: Tensor, states: tuple[Tensor, ...], stats: Stats
    ) -> Trajectory:
        """The trajectory again, from the tensors that autograd saved."""
        *kept_states, prints = states

        def at(place: int | None) -> Tensor:
            return y0 if place is None else kept_states[place]

        kept = Kept(stats)
        for index, place in self.kept.items():
            kept.store(index, at(place))
        observed = {k: at(place) for k, place in self.observed.items()}
        rows = Rows.unstacked(prints)
        return Trajectory(y_end, at(self.before_end), kept, self.first, observed, rows)

    def _place(self, state: Tensor, y0: Tensor) -> int | None:
        if state is y0:
            return None
        for place, known in enumerate(self.states):
            if known is state:
                return place
        self.states.append(state)
        return len(self.states) - 1


@dataclass(eq=False)
class Record:
    """What the sweeps need beside tensors, filled in by the forward one.

    Attributes:
        choices: the optimiser's choices.
        problem: the layout of the inputs; its tensors are not used.
        stats: the cost so far.
        raises: whether a failed task raises; else it gets no gradient.
        refinement: the accepted steps of an adaptive solver.
        ends: see `ends_of_velocity`.
        places: for each kept, observed or last-but-one state: its place among the outputs.
    """

    choices: Choices
    problem: Problem
    stats: Stats
    raises: bool = True
    refinement: Refinement | None = None
    ends: Tensor | None = None
    places: _Places = field(default_factory=_Places)

    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of the problem as a flat tuple."""
        return tuple(self.problem.tensors())

    def observed(self, index: int, y_end: Tensor, states: list[Tensor]) -> Tensor:
        """The observed state at an index of the user's grid."""
        if index == self.problem.grid.steps:
            return y_end
        if index == 0:
            return self.problem.y0
        place = self.places.positions[index]
        return self.problem.y0 if place is None else states[place]

    def rebuild(self, inputs: tuple[Tensor, ...]) -> Problem:
        """The problem with other tensors."""
        y0, times, dt, *rest = (tensor.detach() for tensor in inputs)
        known = self.problem.grid
        stops = None if known.stops is None else rest.pop(0)
        parts: list[tuple[Tensor, ...]] = []
        for part in (*self.problem.theta, *self.problem.data):
            parts.append(tuple(rest[: len(part)]))
            rest = rest[len(part) :]
        return Problem(
            y0, Theta(parts[0], parts[1]), Data(parts[2], parts[3]),
            TimeGrid(times, known.observe, dt=dt, stops=stops),
            self.problem.layout, self.problem.tasks, self.problem.stream,
        )  # fmt: skip


class _ReverseOnly(torch.autograd.Function):
    """A function without a forward-mode rule, which says so."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise SecondOrderError(
            "forward-mode differentiation (torch.func.jvp, jacfwd) and second derivatives (hessian)"
            " through a solve are not supported: use reverse mode (backward, torch.func.grad, vjp,"
            " jacrev), once."
        )


class Solve(_ReverseOnly):
    """(record, *inputs) -> (y_end, *states, fingerprints)."""

    @staticmethod
    @override
    def forward(record: Record, *inputs: Tensor) -> tuple[Tensor, ...]:
        problem = record.rebuild(inputs)
        with torch.no_grad():
            run = run_forward(record.choices, problem, record.stats)
        record.choices = run.choices  # fitted to the size of the state
        trajectory = run.trajectory
        record.places.fill(run)
        y_end = trajectory.y_end
        record.ends = ends_of_velocity(record.choices, problem, y_end)
        if y_end is problem.y0 or any(y_end is state for state in record.places.states):
            y_end = y_end.clone()
        outputs = (y_end, *record.places.states, trajectory.prints.stacked(y_end))
        record.places.states = []
        record.refinement = run.stepper.refinement
        return outputs

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        record, *tensors = inputs
        ctx.record = record
        ctx.count = len(tensors)
        places = record.places
        differentiable = {0, *(1 + p for p in places.observed.values() if p is not None)}
        ctx.mark_non_differentiable(
            *(tensor for i, tensor in enumerate(output) if i not in differentiable)
        )
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    @override
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return (None, *_Pullback.apply(ctx.record, ctx.count, *cotangents, *saved))


class _Pullback(_ReverseOnly):
    """The backward sweep; its own backward raises, since it would be silently wrong."""

    @staticmethod
    @override
    def forward(record: Record, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = (len(tensors) - count) // 2
        cotangents, inputs = tensors[:outputs], tensors[outputs : outputs + count]
        y_end, *states = tensors[outputs + count :]
        with torch.no_grad():
            return pull_back(record, inputs, y_end, tuple(states), cotangents)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        del ctx, inputs, output

    @staticmethod
    @override
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise SecondOrderError(
            "a second derivative through a solve was asked for (create_graph=True, func.hessian or"
            " a nested grad). It is not supported: use unrolled autograd for second derivatives,"
            " or detach the first."
        )


def pull_back(
    record: Record,
    inputs: tuple[Tensor, ...],
    y_end: Tensor,
    states: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Gradients w.r.t. the inputs of `Solve`, in their order."""
    problem = record.rebuild(inputs)
    check_ends(record.ends, record.choices, problem, y_end)
    places = record.places
    trajectory = places.trajectory(problem.y0, y_end, states, record.stats)
    run = rebuild_run(record.choices, problem, trajectory, record.refinement, record.stats)
    seeds = {
        index: cotangents[1 + place]
        for index, place in places.observed.items()
        if place is not None
    }
    solved = Solved(run, skips=not record.raises)
    swept = solved.pull(cotangents[0], seeds, record.stats)
    if is_visible(swept.lam):
        solved.check()
        swept = drop_failed(swept, solved.status == Status.OK)
    return _gradients(problem, swept)


def _gradients(problem: Problem, swept: Swept) -> tuple[Tensor, ...]:
    """One gradient for each input of `Solve`; those of shared inputs are sums over tasks."""
    summed = _itself if problem.tasks is None else _sum_over_tasks
    theta = theta_gradients(problem, swept, summed)
    g_data = [torch.zeros_like(leaf) for part in problem.data for leaf in part]
    g_times = torch.nn.functional.pad(swept.t, (0, 1)).to(problem.grid.times.dtype)
    g_dt = swept.dt.to(problem.grid.dt.dtype)
    stops = problem.grid.stops
    g_stops = [] if stops is None else [torch.zeros_like(stops)]
    return (swept.lam, g_times, g_dt, *g_stops, *theta.shared, *theta.batch, *g_data)


def _itself(leaf: Tensor) -> Tensor:
    return leaf


def _sum_over_tasks(leaf: Tensor) -> Tensor:
    return leaf.sum(0)


class Found(NamedTuple):
    """What a solve found.

    Attributes:
        y_end: the final state.
        observed: the observed states, in the order of the grid.
        status: see `Solution`.
        stats: likewise.
    """

    y_end: Tensor
    observed: list[Tensor]
    status: Tensor | None
    stats: Stats


def is_tracked(problem: Problem) -> bool:
    """Whether anybody will differentiate a solve."""
    return torch.is_grad_enabled() and any(requires_grad(leaf) for leaf in problem.tensors())


def solve_tracked(choices: Choices, problem: Problem, raises: bool) -> Found:
    """A solve with its backward pass."""
    record = Record(choices, problem, Stats(), raises)
    y_end, *states = Solve.apply(record, *record.inputs())
    status = _check_solution(record, y_end)
    observed = [record.observed(index, y_end, states) for index in problem.grid.observe]
    return Found(y_end, observed, status, record.stats)


def solve_untracked(choices: Choices, problem: Problem, raises: bool) -> Found:
    """A solve that nobody will differentiate: nothing is kept for it, and nothing made twice."""
    stats, problem = Stats(), problem.detach()
    with torch.no_grad():
        solved = Solved.forward(choices.forward_only(), problem, stats, skips=not raises)
        status = _judge(solved)
    *observed, y_end = solved.states
    return Found(y_end, observed, status, stats)


def _check_solution(record: Record, y_end: Tensor) -> Tensor | None:
    """The status of a solve, or None where it cannot be seen; raises if a task failed."""
    y_end = y_end.detach()
    if not is_visible(y_end):
        return None
    stats = Stats()
    trajectory = Trajectory(y_end, y_end, Kept(stats), 0)
    run = rebuild_run(record.choices, record.problem.detach(), trajectory, record.refinement, stats)
    with torch.no_grad():
        return _judge(Solved(run, skips=not record.raises))


def _judge(solved: Solved) -> Tensor | None:
    """The status of each task, or None where it cannot be seen; raises if one failed."""
    if not is_visible(solved.status):
        return None
    solved.check()
    return solved.status
