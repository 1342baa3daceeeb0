"""The autograd bridge: the two sweeps behind one `torch.autograd.Function`.

Every tensor that the backward sweep needs is an input or an output of the function, so that it
works under `torch.func.vmap` and `torch.func.grad` as well. An output must be neither an input
nor the same tensor as another output, which is why states are returned once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import Swept
from odeopt.engine.choices import Choices
from odeopt.engine.forward import Rows, Trajectory
from odeopt.engine.kept import Kept
from odeopt.engine.problem import Problem
from odeopt.engine.run import Run, rebuild_run, run_forward
from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import Refinement
from odeopt.engine.tape import Tape
from odeopt.errors import SecondOrderError
from odeopt.gradient.probe import check_ends, ends_of_velocity
from odeopt.gradient.solved import Solved, drop_failed, is_visible, theta_gradients
from odeopt.tools import tree
from odeopt.tools.transforms import requires_grad


@dataclass(eq=False)
class Record:
    """What the sweeps need beside tensors, filled in by the forward one.

    Attributes:
        choices: the optimiser's choices.
        problem: the layout of the inputs.
        stats: the cost so far.
        skips: whether a failed task gets no gradient; else it raises.
        refinement: the accepted steps of an adaptive solver.
        tape: the graphs of steps, for the first backward pass.
        ends: see `ends_of_velocity`.
        first: the first step that is to be pulled.
        places: the state before the last, kept states by index and observed states by step, each
            as its place among the distinct states of the outputs; None stands for y0.
    """

    choices: Choices
    problem: Problem
    stats: Stats
    skips: bool
    refinement: Refinement | None = None
    tape: Tape | None = None
    ends: Tensor | None = None
    first: int = 0
    places: tuple[int | None, dict[int, int | None], dict[int, int | None]] = (None, {}, {})

    def distinct(self, run: Run) -> list[Tensor]:
        """The distinct states of a finished forward sweep without y0; notes which is where."""
        trajectory, kept = run.trajectory, run.trajectory.kept
        kept_states = {index: kept[index] for index in kept.indices()}
        roles = (trajectory.before_end, kept_states, trajectory.observed)
        states: list[Tensor] = []
        places: dict[int, int | None] = {id(run.problem.y0): None}
        for state in tree.tensors(roles):
            if id(state) not in places:
                places[id(state)] = len(states)
                states.append(state)
        self.places = tree.map_tensors(lambda state: places[id(state)], roles)
        self.first = trajectory.first
        return states

    def run(
        self, problem: Problem, outputs: tuple[Tensor, ...], kept: dict[int, int | None]
    ) -> Run:
        """The finished forward sweep again, from the tensors that autograd saved.

        Args:
            problem: the inputs.
            outputs: what the forward sweep returned.
            kept: where the kept states are that will be used, as in `places`.
        """
        y_end, *states, prints = outputs

        def state(place: int | None) -> Tensor:
            return problem.y0 if place is None else states[place]

        before_end, _, observed = self.places
        held = Kept(self.stats)
        for index, place in kept.items():
            held.store(index, state(place))
        trajectory = Trajectory(
            y_end, state(before_end), held, self.first,
            {step: state(place) for step, place in observed.items()}, Rows.unstacked(prints),
        )  # fmt: skip
        return rebuild_run(
            self.choices, problem, trajectory, self.refinement, self.stats, self.tape
        )


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
        problem = record.problem.with_tensors(leaf.detach() for leaf in inputs)
        with torch.no_grad():
            run = run_forward(record.choices, problem, record.stats)
        record.choices = run.choices  # fitted to the size of the state
        record.refinement, record.tape = run.stepper.refinement, run.kernels.tape
        states, y_end = record.distinct(run), run.trajectory.y_end
        record.ends = ends_of_velocity(record.choices, problem, y_end)
        if any(y_end is state for state in (problem.y0, *states)):
            y_end = y_end.clone()
        return (y_end, *states, run.trajectory.prints.stacked(y_end))

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        record, *tensors = inputs
        ctx.record = record
        ctx.count = len(tensors)
        _, _, observed = record.places
        differentiable = {0, *(1 + place for place in observed.values() if place is not None)}
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
        problem = record.problem.with_tensors(leaf.detach() for leaf in inputs)
        with torch.no_grad():
            return _pull_back(record, problem, tensors[outputs + count :], cotangents)

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


def _pull_back(
    record: Record, problem: Problem, outputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Gradients w.r.t. the inputs of `Solve`, in their order."""
    check_ends(record.ends, record.choices, problem, outputs[0])
    _, kept, observed = record.places
    solved = Solved(record.run(problem, outputs, kept), record.skips)
    seeds = {k: cotangents[1 + place] for k, place in observed.items() if place is not None}
    swept = solved.pull(cotangents[0], seeds, record.stats)
    if is_visible(swept.lam):
        solved.check()
        swept = drop_failed(swept, solved.status == Status.OK)
    return _gradients(problem, swept)


def _gradients(problem: Problem, swept: Swept) -> tuple[Tensor, ...]:
    """One gradient for each input of `Solve`; those of shared inputs are sums over tasks."""
    alone = problem.tasks is None
    theta = theta_gradients(problem, swept, lambda leaf: leaf if alone else leaf.sum(0))
    grid = problem.grid
    g_times = torch.nn.functional.pad(swept.t, (0, 1)).to(grid.times.dtype)
    g_dt = swept.dt.to(grid.dt.dtype)
    g_stops, g_data = tree.map_tensors(torch.zeros_like, (grid.stops, problem.data))
    return tuple(tree.tensors((swept.lam, g_times, g_dt, g_stops, theta, g_data)))


def solve(choices: Choices, problem: Problem, skips: bool, tracked: bool) -> Solved:
    """A solve with its backward pass, if anybody will differentiate it.

    Else nothing is kept for it, and nothing made twice.

    Args:
        choices: the optimiser's choices.
        problem: the inputs.
        skips: whether tasks that fail are left out; else the first one raises.
        tracked: what `is_tracked` says of the problem.
    """
    if not tracked:
        with torch.no_grad():
            solved = Solved.forward(choices.forward_only(), problem.detach(), Stats(), skips)
            solved.check()
            return solved
    record = Record(choices, problem, Stats(), skips)
    outputs = Solve.apply(record, *problem.tensors())
    with torch.no_grad():
        solved = Solved(record.run(problem, outputs, kept={}), skips)
        solved.check()
        return solved


def is_tracked(problem: Problem) -> bool:
    """Whether anybody will differentiate a solve."""
    return torch.is_grad_enabled() and any(requires_grad(leaf) for leaf in problem.tensors())
