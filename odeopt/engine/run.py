"""A solve and its differentiation on flat tensors, without autograd."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from odeopt.adjoint.base import Interval, LocalAdjoint, Sweep, Swept, WholeAdjoint
from odeopt.engine.adaptive import AdaptiveStepper
from odeopt.engine.backward import (
    BackwardSweep,
    SpectralMonitor,
    StepKernels,
    Trace,
    backward_actions,
)
from odeopt.engine.choices import Choices
from odeopt.engine.flat import bind
from odeopt.engine.forward import ForwardSweep, Trajectory, fingerprint, run_to_end
from odeopt.engine.journal import Journal, identify
from odeopt.engine.kept import Kept
from odeopt.engine.kernels import Kernels, Scalars, StepInputs
from odeopt.engine.many import fitting, is_many
from odeopt.engine.problem import Problem
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper, GridStepper, Refinement, SettledStepper, Stepper
from odeopt.engine.tape import Tape
from odeopt.engine.turns import takes_turns
from odeopt.engine.watch import refuse_autocast
from odeopt.errors import CompatibilityError, NondeterminismError
from odeopt.inner.attention import PLAIN_ATTENTION
from odeopt.solver.base import GridSolver, Stepping
from odeopt.solver.dynamics import Data, Theta
from odeopt.solver.error_control import ErrorControlled
from odeopt.tools import tree
from odeopt.tools.autodiff import can_record
from odeopt.tools.transforms import inside_transform


@dataclass(frozen=True)
class Run:
    """A finished forward sweep: what was chosen, its inputs, and the states that were kept."""

    choices: Choices
    problem: Problem
    kernels: Kernels
    stepper: SettledStepper
    trajectory: Trajectory
    kept_at_end: list[int]
    """The states that were kept when the forward sweep ended."""
    journal: Journal | None = None


def make_kernels(choices: Choices, problem: Problem, stats: Stats) -> Kernels:
    """The kernels of a problem; not compiled inside a function transform, which cannot be.

    Every sweep, forward or backward, begins here.
    """
    refuse_autocast(problem.y0.device)
    dynamics = bind(choices.field, problem.layout)
    compiler = None if inside_transform(problem.tensors()) else choices.compiler
    theta, data, stream = problem.theta, problem.data, problem.stream
    steps = None
    if stream is not None:
        choices.check_stream(stream)
        steps = StepInputs(stream, problem.layout.batch, data.shared)
        if compiler is not None and stream.seed is not None:
            compiler.decline("steps draw random numbers, which a trace would draw anew.")
            compiler = None
    captured = () if compiler is None else choices.field.captured()
    turns = compiler is None and can_record(problem.tensors()) and takes_turns(problem)
    return Kernels(
        dynamics, choices.solver, theta, data, problem.tasks, steps, compiler, captured, stats,
        turns=turns,
    )  # fmt: skip


@PLAIN_ATTENTION  # switched once for a sweep, and not for each step
def run_forward(
    choices: Choices, problem: Problem, stats: Stats, refinement: Refinement | None = None
) -> Run:
    """The forward sweep (eq. 3 of the paper), with steps that are known already if given."""
    elsewhere = choices.elsewhere
    if elsewhere and inside_transform(problem.tensors()):
        raise CompatibilityError(
            f"store={elsewhere} copies states, whose values torch.func.vmap hides: use tasks=True"
            " instead of vmap, or keep them on the device."
        )
    kernels, journal = _with_tape(choices, make_kernels(choices, problem, stats), problem), None
    with ExitStack() as on_error:
        if choices.journal is not None and problem.grid.steps > 0:
            identity = identify(choices, problem, kernels)
            journal = Journal(*choices.journal, identity, problem.y0.device)
            on_error.callback(journal.close)
        run = _begin_or_resume(choices, problem, kernels, refinement, journal, on_error)
        on_error.pop_all()
    return run


def _begin_or_resume(
    choices: Choices, problem: Problem, kernels: Kernels, refinement: Refinement | None,
    journal: Journal | None, on_error: ExitStack,
) -> Run:  # fmt: skip
    stats, saved = kernels.stats, None if journal is None else journal.forward
    chosen = None if saved is None else saved.refinement
    if refinement is None and chosen is not None:
        refinement = Refinement(**chosen)
    stepper, first = _make_stepper(choices, kernels, problem, refinement), 0
    local, kept = isinstance(choices.adjoint, LocalAdjoint), Kept(stats)
    if isinstance(choices.adjoint, LocalAdjoint):
        first, length = _first_step(stepper, choices.adjoint), stepper.length
        if chosen is not None and not choices.needs_length:
            length = None  # as it was for the schedule that has kept the states
        choices = choices.fit(problem.y0, None if length is None else length - first)
        opened = None if journal is None else {journal.tier: journal.shelf}
        kept = on_error.enter_context(Kept(stats, choices.checkpoints.tiers, opened))
    if journal is not None:
        journal.recover(kept)
    _begin_tape(choices, kernels, problem.y0, stepper.length, first)
    trajectory = Trajectory(problem.y0, problem.y0, kept, first)
    if saved is not None:
        trajectory = Trajectory.resumed(saved, kept, first)
    if saved is not None and saved.done:
        kept_at_end, stepper = [index for index, _ in saved.kept], stepper.settled()
    else:
        stepper = _sweep(choices, stepper, trajectory, problem.grid.observe, journal)
        kept_at_end = kept.indices()
    if journal is not None:
        journal.forward = None  # its states are not to stay alive
    if local:
        plan, tape = choices.checkpoints.plan(stepper.length - first), kernels.tape
        stats.plan = replace(plan, graphs=len(tape)) if plan and tape else plan
    return Run(choices, problem, kernels, stepper, trajectory, kept_at_end, journal)


def _with_tape(choices: Choices, kernels: Kernels, problem: Problem) -> Kernels:
    """The kernels with a tape, where steps can be recorded and the schedule keeps graphs."""
    adjoint, tensors = choices.adjoint, problem.tensors()
    eager = kernels.compiler is None and (kernels.tasks is None or kernels.turns)
    keeps = choices.checkpoints.keeps_graphs and adjoint.pulls_graphs
    if not (eager and keeps and can_record(tensors)):
        return kernels
    tape = Tape(tensors, kernels.stats)
    return replace(kernels, tape=tape, differentiation=adjoint.differentiation)


def _begin_tape(
    choices: Choices, kernels: Kernels, state: Tensor, length: int | None, first: int
) -> None:
    if kernels.tape is not None and length is not None:
        nbytes, steps = state.nbytes, length - first
        capacity = partial(choices.checkpoints.graphs, state_bytes=nbytes, steps=steps)
        kernels.tape.begin(length - 1, capacity)


def _first_step(stepper: Stepper, adjoint: LocalAdjoint) -> int:
    """The first step that is differentiated for any task."""
    if not isinstance(stepper, SettledStepper) or adjoint.first_step(stepper.length) == 0:
        return 0
    return int(stepper.left_out(adjoint).reshape(-1, stepper.length).all(0).sum())


def _sweep(
    choices: Choices, stepper: Stepper, trajectory: Trajectory, observe: tuple[int, ...],
    journal: Journal | None,
) -> SettledStepper:  # fmt: skip
    """Make the forward sweep, and save what the backward sweep begins with."""
    kept, local = trajectory.kept, isinstance(choices.adjoint, LocalAdjoint)
    schedule = choices.checkpoints if local else None
    saves = stepper.saves and stepper.length is not None and not choices.checkpoints.watches
    assert saves or journal is None or journal.forward is None, "only what saves was interrupted"
    prints = choices.replayed and isinstance(stepper, SettledStepper)
    ForwardSweep(stepper, trajectory, observe, prints, journal if saves else None).run(schedule)
    settled = stepper.settled()
    kept.stats.steps += settled.length
    if local and not choices.replays:
        for index, state in trajectory.observed.items():  # observed states are mesh nodes
            kept.store(index, state)
    if journal is not None:
        progress = trajectory.progress(
            settled.length, actions=0, begun=True, done=True, refinement=settled.refinement
        )
        journal.save(progress, kept)
    return settled


def _make_stepper(
    choices: Choices, kernels: Kernels, problem: Problem, refinement: Refinement | None
) -> Stepper:
    solver, grid, y0, stats = choices.solver, problem.grid, problem.y0, kernels.stats
    if isinstance(solver, GridSolver):
        return GridStepper(kernels, grid, y0, stats)
    known = refinement is not None or grid.steps == 0
    if known or not isinstance(solver, ErrorControlled) or not solver.chooses_steps:
        return FixedStepper(kernels, grid, y0.dtype, stats, refinement)
    stepper = AdaptiveStepper(kernels, solver, grid, y0, stats)
    if not (choices.needs_length and isinstance(choices.adjoint, LocalAdjoint)):
        return stepper
    run_to_end(stepper, y0)
    return stepper.settled()


def rebuild_run(
    choices: Choices, problem: Problem, trajectory: Trajectory, refinement: Refinement | None,
    stats: Stats, tape: Tape | None,
) -> Run:  # fmt: skip
    """A finished forward sweep, put together again from its tensors and its tape."""
    kernels = make_kernels(choices, problem, stats)
    kernels = replace(kernels, tape=tape, differentiation=choices.adjoint.differentiation)
    stepper = _make_stepper(choices, kernels, problem, refinement)
    assert isinstance(stepper, SettledStepper), "a refinement says which steps were chosen"
    return Run(choices, problem, kernels, stepper, trajectory, trajectory.kept.indices())


@PLAIN_ATTENTION
def run_backward(
    run: Run, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats,
    chunk_size: int | None = None,
) -> tuple[Swept, Trace]:  # fmt: skip
    """The backward sweep (eq. 8), with gradients w.r.t. the user's grid.

    Args:
        run: the forward sweep.
        lam: gradient of the outer loss w.r.t. the final state, shape [d] or [tasks, d]; with many
            outer losses these are its last dimensions, and all results have the first one, too.
        cotangents: gradients w.r.t. observed states, by step index, without the last.
        stats: the cost is added to it.
        chunk_size: how many of many losses are pulled at once; None for as many as fit into memory.
    """
    adjoint = run.choices.adjoint
    if isinstance(adjoint, WholeAdjoint):
        swept, trace = _run_whole(run, adjoint, lam, cotangents, stats), Trace(exact=adjoint.exact)
    else:
        assert isinstance(adjoint, LocalAdjoint), "the two kinds there are"
        swept, trace = _run_local(run, adjoint, lam, cotangents, stats, chunk_size)
    if run.stepper.refinement is not None:
        g_t, g_dt = run.stepper.refinement.pull(run.problem.grid, swept.t, swept.dt)
        swept = swept._replace(t=g_t, dt=g_dt)
    return swept, trace


def _run_local(
    run: Run, adjoint: LocalAdjoint, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats,
    chunk_size: int | None,
) -> tuple[Swept, Trace]:  # fmt: skip
    choices, kernels, iterations = run.choices, run.kernels, run.choices.safety.power_iterations
    losses = len(lam) if is_many(lam, run.problem.y0) else 1
    if losses > 1:
        kernels = replace(kernels, chunk_size=chunk_size or _fitting(run))
    at, monitor = StepKernels(kernels, run.stepper, adjoint), None
    if iterations > 0 and adjoint.stability_limit(kernels.solver) is not None:
        monitor = SpectralMonitor(at, kernels, adjoint, iterations)
    pull = at.pull if monitor is None else monitor.pull
    sweep = BackwardSweep(
        run.stepper, run.trajectory, adjoint, pull, cotangents, stats, run.journal
    )
    _begin_tape(choices, kernels, lam, run.stepper.length, run.trajectory.first)
    steps = run.stepper.length - run.trajectory.first
    actions = backward_actions(choices.checkpoints, adjoint, run.kept_at_end, steps)
    swept, trace = sweep.run(actions, lam), sweep.trace
    for start in trace.starts:
        cost = at.cost(start)
        stats.gradient_evaluations += cost.gradients * -(-losses // (kernels.chunk_size or losses))
        stats.hvps += cost.hvps * losses
    if monitor is not None:
        trace.spectral = monitor.ratios
        stats.hvps += len(trace.starts) * iterations
    return swept, trace


def _fitting(run: Run) -> int | None:
    """How many cotangents fit into memory, from a look at the first step."""
    if run.stepper.length == 0:
        return None
    y0, interval = run.problem.y0, run.stepper.interval(0, 1)
    return fitting(run.kernels.pull_bytes(0, *interval, y0), y0.device)


def _run_whole(
    run: Run, adjoint: WholeAdjoint, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats
) -> Swept:
    if is_many(lam, run.problem.y0):
        each = zip(lam, *cotangents.values(), strict=True)
        swept = [
            _run_whole(run, adjoint, own, dict(zip(cotangents, others, strict=True)), stats)
            for own, *others in each
        ]
        return _stacked(swept)
    kernels, stepper = run.kernels, run.stepper

    def stepping(theta: Theta, data: Data) -> Stepping:
        return kernels.stepping(adjoint.differentiation, theta, data)

    times = torch.stack([stepper.time(k) for k in range(stepper.length + 1)], dim=-1).to(lam.dtype)
    y0, y_end, theta, data = run.problem.y0, run.trajectory.y_end, kernels.theta, kernels.data
    sweep = Sweep(y0, y_end, times, cotangents, kernels.batched, stepping, theta, data)
    swept, cost = adjoint.backward(sweep, lam)
    stats.gradient_evaluations += cost.gradients
    stats.hvps += cost.hvps
    return swept


def _stacked(swept: list[Swept]) -> Swept:
    """The results of many outer losses as one."""

    def stack(*values: Tensor | None) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.stack(known) if known else None

    fields = {name: [getattr(own, name) for own in swept] for name in Swept._fields}
    reports = fields.pop("reports")
    stacked: Any = {
        name: tree.pytree.tree_map(stack, *values) for name, values in fields.items()
    }  # fmt: skip
    named = {name: torch.stack([own[name] for own in reports]) for name in reports[0]}
    return Swept(**stacked, reports=named)


def check_replay(run: Run, trace: Trace) -> None:
    """Raise if the backward sweep met other steps than the forward sweep had made.

    Replayed states are compared bit for bit. Steps that were differentiated are compared with
    where the solve came to, up to rounding. Where that does not explain a difference (code that was
    compiled in two ways may round in two ways, and some rules magnify it) both are made once more:
    what comes out the same again was no accident, and nothing has changed.

    Raises:
        NondeterminismError: if they differ.
    """
    if not trace.starts:
        return
    other = _first_other_state(run.trajectory, trace)
    if other is not None:
        raise NondeterminismError(_REPLAYED.format(step=other))
    gaps = trace.read(trace.end).gap
    over = (gaps.reshape(len(trace.starts), -1) > 1).any(-1).nonzero().flatten().tolist()
    if over and not _happens_again(run, trace.end, {trace.starts[row]: gaps[row] for row in over}):
        raise NondeterminismError(_CHANGED.format(step=min(trace.starts[row] for row in over)))


def _first_other_state(trajectory: Trajectory, trace: Trace) -> int | None:
    """The first replayed state that differs from the one of the forward sweep."""
    if not trace.prints:
        return None
    replayed = trace.prints.stacked(trace.end)
    indices = torch.tensor(trace.starts, device=replayed.device) - trajectory.first
    expected = trajectory.prints.stacked(trace.end)[indices]
    different = (replayed != expected) & ~(replayed.isnan() & expected.isnan())
    rows = different.reshape(different.shape[0], -1).any(-1).nonzero().flatten().tolist()
    return min((trace.starts[row] for row in rows), default=None)


def _happens_again(run: Run, end: Tensor, gaps: dict[int, Tensor]) -> bool:
    """Whether both sweeps come to the same again: the end of the solve, and gaps at some steps."""
    adjoint, stepper, y = run.choices.adjoint, run.stepper, run.problem.y0
    assert isinstance(adjoint, LocalAdjoint), "others have no gaps"
    pull = StepKernels(run.kernels, stepper, adjoint).pull
    for k in range(stepper.length):
        before, y = y, stepper.advance(k, y)
        if k in gaps:
            interval = Interval(*stepper.interval(k, k + 1), before, y)
            pulled = pull(k, interval, torch.zeros_like(y))
            gap = Scalars.of(pulled.scalars).gap
            if not torch.equal(gap.expand_as(gaps[k]), gaps[k]):
                return False
    return torch.equal(fingerprint(y), end)


_REPLAYED = (
    "the state before step {step} is not the same when it is replayed. The loss is not a pure"
    " function of its arguments (random numbers, a counter, non-deterministic CUDA kernels), or"
    " something that it uses has changed since: make it one, call"
    " torch.use_deterministic_algorithms(True), or keep every state with checkpoints=Every(1)."
)
_CHANGED = (
    "step {step} does not lead where it led in the forward sweep, when it is made again to be"
    " differentiated. Something that the loss uses has changed since the solve: a number or tensor"
    " that it captures, an attribute of a module, the data behind a Stream; or another thread draws"
    " random numbers. Pass what changes in hparams or in the batch, and change it after backward()."
)
