"""A solve and its differentiation on flat tensors, without autograd."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from odeopt.adjoint.base import LocalAdjoint, Sweep, Swept, WholeAdjoint
from odeopt.engine.adaptive import AdaptiveStepper, RefinedStepper
from odeopt.engine.backward import BackwardSweep, StepKernels, Trace, backward_actions
from odeopt.engine.choices import Choices
from odeopt.engine.flat import bind
from odeopt.engine.forward import (
    Trajectory,
    forward_progress,
    forward_sweep,
    resumed_trajectory,
    run_to_end,
)
from odeopt.engine.identity import identify
from odeopt.engine.journal import ForwardProgress, Journal
from odeopt.engine.kept import Kept
from odeopt.engine.kernels import Kernels
from odeopt.engine.precision import refuse_autocast
from odeopt.engine.problem import Problem
from odeopt.engine.refinement import Refinement
from odeopt.engine.spectral_guard import SpectralMonitor
from odeopt.engine.stats import Stats
from odeopt.engine.step_inputs import StepInputs
from odeopt.engine.steppers import FixedStepper, GridStepper, SettledStepper, Stepper
from odeopt.errors import CompatibilityError
from odeopt.solver.base import GridSolver, Stepping
from odeopt.solver.dynamics import Data, Theta
from odeopt.solver.error_control import ErrorControlled
from odeopt.tools.transforms import inside_transform


@dataclass(frozen=True)
class Run:
    """A finished forward sweep: what was chosen, its inputs, and the states that were kept."""

    choices: Choices
    problem: Problem
    kernels: Kernels
    stepper: SettledStepper
    trajectory: Trajectory
    placed: list[int]
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
        steps = StepInputs(stream, problem.layout.batch, data.shared, problem.y0.device)
        if compiler is not None and stream.seed is not None:
            compiler.decline("steps draw random numbers, which a trace would draw anew.")
            compiler = None
    captured = () if compiler is None else choices.field.captured()
    return Kernels(
        dynamics, choices.solver, theta, data, problem.tasks, steps, compiler, captured, stats
    )


def run_forward(
    choices: Choices, problem: Problem, stats: Stats, refinement: Refinement | None = None
) -> Run:
    """The forward sweep (eq. 3 of the paper), with steps that are known already if given."""
    _check_visible(choices, problem)
    kernels = make_kernels(choices, problem, stats)
    journal = _open_journal(choices, problem, kernels)
    with ExitStack() as on_error:
        if journal is not None:
            on_error.callback(journal.close)
        run = _run_or_resume(choices, problem, kernels, refinement, journal)
        on_error.pop_all()
    return run


def _run_or_resume(
    choices: Choices, problem: Problem, kernels: Kernels, refinement: Refinement | None,
    journal: Journal | None,
) -> Run:  # fmt: skip
    stats, saved = kernels.stats, None if journal is None else journal.forward
    stepper = _make_stepper(choices, kernels, problem, refinement or _refinement(saved))
    if not isinstance(choices.adjoint, LocalAdjoint):
        return _sweep_forward(choices, problem, kernels, stepper, 0, Kept(stats), None)
    length = stepper.length
    if saved is not None and saved.refinement is not None and not choices.needs_length:
        length = None  # as it was for the schedule that has kept the states
    first = _first_step(stepper, choices.adjoint)
    choices = choices.fit(problem.y0, None if length is None else length - first)
    with ExitStack() as on_error:
        opened = None if journal is None else {journal.tier: journal.shelf}
        kept = on_error.enter_context(Kept(stats, choices.checkpoints.tiers, opened))
        if journal is not None:
            journal.resume(kept)
        if saved is not None and saved.done:
            trajectory = resumed_trajectory(saved, kept, first)
            assert isinstance(stepper, SettledStepper), "the refinement is saved"
            placed = [index for index, _ in saved.kept]
            run = Run(choices, problem, kernels, stepper, trajectory, placed, journal)
        else:
            run = _sweep_forward(choices, problem, kernels, stepper, first, kept, journal)
            _save_end(run)
        on_error.pop_all()
    if journal is not None:
        journal.forward = None  # its states are not to stay alive
    stats.plan = choices.checkpoints.plan((run.stepper.length or 0) - first)
    return run


def _first_step(stepper: Stepper, adjoint: LocalAdjoint) -> int:
    """The first step that is differentiated for any task."""
    if stepper.length is None or adjoint.first_step(stepper.length) == 0:
        return 0
    assert isinstance(stepper, SettledStepper), "its length is known"
    return int(stepper.left_out(adjoint).reshape(-1, stepper.length).all(0).sum())


def _sweep_forward(
    choices: Choices, problem: Problem, kernels: Kernels, stepper: Stepper, first: int,
    kept: Kept, journal: Journal | None,
) -> Run:  # fmt: skip
    local, stats = isinstance(choices.adjoint, LocalAdjoint), kept.stats
    trajectory = forward_sweep(
        stepper,
        problem.y0,
        choices.checkpoints if local else None,
        kept,
        first,
        problem.grid.observe,
        fingerprints=local and choices.replayed and isinstance(stepper, SettledStepper),
        journal=journal,
    )
    settled = stepper.settled()
    stats.steps += settled.length or 0
    if local and not choices.replays:
        for index, state in trajectory.observed.items():  # observed states are mesh nodes
            trajectory.kept.store(index, state)
    return Run(choices, problem, kernels, settled, trajectory, kept.indices(), journal)


def _open_journal(choices: Choices, problem: Problem, kernels: Kernels) -> Journal | None:
    if choices.journal is None or problem.grid.steps == 0:
        return None
    identity = identify(choices, problem, kernels)
    return Journal(*choices.journal, identity, problem.y0.device)


def _save_end(run: Run) -> None:
    """Save what the backward sweep begins with."""
    if run.journal is not None:
        stepper = run.stepper
        refinement = stepper.refinement
        length, trajectory = stepper.length or 0, run.trajectory
        progress = forward_progress(
            trajectory, length, actions=0, begun=True, done=True, refinement=refinement
        )
        run.journal.save(progress, trajectory.kept)


def _refinement(saved: ForwardProgress | None) -> Refinement | None:
    steps = None if saved is None else saved.refinement
    return None if steps is None else Refinement(**steps)


def _check_visible(choices: Choices, problem: Problem) -> None:
    elsewhere = choices.elsewhere
    if elsewhere and inside_transform(problem.tensors()):
        raise CompatibilityError(
            f"store={elsewhere} copies states, whose values torch.func.vmap hides: use tasks=True"
            " instead of vmap, or keep them on the device."
        )


def run_backward(
    run: Run, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats
) -> tuple[Swept, Trace]:
    """The backward sweep (eq. 8), with gradients w.r.t. the user's grid.

    Args:
        run: the forward sweep.
        lam: gradient of the outer loss w.r.t. the final state, shape [d] or [tasks, d].
        cotangents: gradients w.r.t. observed states, by step index, without the last.
        stats: the cost is added to it.
    """
    adjoint = run.choices.adjoint
    if isinstance(adjoint, WholeAdjoint):
        swept, trace = _run_whole(run, adjoint, lam, cotangents, stats), Trace(exact=adjoint.exact)
    else:
        assert isinstance(adjoint, LocalAdjoint), "the two kinds there are"
        swept, trace = _run_local(run, adjoint, lam, cotangents, stats)
    if run.stepper.refinement is not None:
        g_t, g_dt = run.stepper.refinement.pull(run.problem.grid, swept.t, swept.dt)
        swept = swept._replace(t=g_t, dt=g_dt)
    return swept, trace


def _run_local(
    run: Run, adjoint: LocalAdjoint, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats
) -> tuple[Swept, Trace]:
    choices = run.choices
    at = StepKernels(run.kernels, run.stepper, adjoint)
    pull = at.pull
    monitor = SpectralMonitor.make(run.kernels, adjoint, choices.safety.power_iterations, at.solver)
    if monitor is not None:
        pull = monitor.watch(pull)
    sweep = BackwardSweep(
        run.stepper, run.trajectory, adjoint, pull, cotangents, stats, run.journal
    )
    steps = (run.stepper.length or 0) - run.trajectory.first
    actions = backward_actions(choices.checkpoints, adjoint, run.placed, steps)
    swept = sweep.run(actions, lam)
    for start in sweep.trace.starts:
        cost = at.cost(start)
        stats.gradient_evaluations += cost.gradients
        stats.hvps += cost.hvps
    if monitor is not None:
        sweep.trace.spectral = monitor.ratios
        stats.hvps += len(sweep.trace.starts) * choices.safety.power_iterations
    return swept, sweep.trace


def _run_whole(
    run: Run, adjoint: WholeAdjoint, lam: Tensor, cotangents: dict[int, Tensor], stats: Stats
) -> Swept:
    kernels, length = run.kernels, run.stepper.length or 0

    def stepping(theta: Theta, data: Data) -> Stepping:
        return kernels.stepping(adjoint.differentiation, theta, data)

    times = torch.stack([run.stepper.time(k) for k in range(length + 1)], dim=-1)
    sweep = Sweep(
        run.problem.y0,
        run.trajectory.y_end,
        times.to(lam.dtype),
        cotangents,
        kernels.batched,
        stepping,
        kernels.theta,
        kernels.data,
    )
    swept, cost = adjoint.backward(sweep, lam)
    stats.gradient_evaluations += cost.gradients
    stats.hvps += cost.hvps
    return swept


def _make_stepper(
    choices: Choices, kernels: Kernels, problem: Problem, refinement: Refinement | None
) -> Stepper:
    solver, grid, y0, stats = choices.solver, problem.grid, problem.y0, kernels.stats
    if refinement is not None:
        return RefinedStepper(kernels, grid, refinement, y0.dtype, stats)
    if isinstance(solver, GridSolver):
        return GridStepper(kernels, grid, y0, stats)
    if not isinstance(solver, ErrorControlled) or not solver.chooses_steps or grid.steps == 0:
        return FixedStepper(kernels, grid, y0.dtype, stats)
    stepper = AdaptiveStepper(kernels, solver, grid, y0, stats)
    if not (choices.needs_length and isinstance(choices.adjoint, LocalAdjoint)):
        return stepper
    run_to_end(stepper, y0)
    return stepper.settled()


def rebuild_run(
    choices: Choices,
    problem: Problem,
    trajectory: Trajectory,
    refinement: Refinement | None,
    stats: Stats,
) -> Run:
    """A finished forward sweep, put together again from its tensors."""
    kernels = make_kernels(choices, problem, stats)
    stepper = _make_stepper(choices, kernels, problem, refinement)
    assert isinstance(stepper, SettledStepper), "a refinement says which steps were chosen"
    return Run(choices, problem, kernels, stepper, trajectory, trajectory.kept.indices())
