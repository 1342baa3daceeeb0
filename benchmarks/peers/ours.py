"""odeopt's configurations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

import odeopt
from benchmarks.peers.problems import Problem
from benchmarks.peers.runner import Outcome, Runner, Setup
from odeopt.adjoint.base import Adjoint
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.solver.base import Solver

Make = Callable[[Setup, float | None], Runner]
Grid = Callable[[int], odeopt.TimeGrid]


FASTEST = "the fastest backend"


def descent(
    checkpoints: Callable[[int], CheckpointSchedule] | None = None,
    compile: str | None = FASTEST,
) -> Make:
    """The exact gradient of gradient descent; its setting is the number of steps.

    Args:
        checkpoints: The schedule for a number of steps; every state without it.
        compile: How kernels are run.
    """

    def make(setup: Setup, setting: float | None) -> Runner:
        steps = setup.steps if setting is None else round(setting)
        schedule = None if checkpoints is None else checkpoints(steps)
        field = odeopt.GradientFlow(setup.problem.loss)
        backend = _backend(setup, compile)
        opt = odeopt.ODEOptimizer(field, checkpoints=schedule, compile=backend)
        lr = setup.t1 / steps
        return _runner(setup.problem, opt, steps, lambda n: odeopt.TimeGrid.from_lr(lr, n))

    return make


def flow(
    adjoint: Callable[[], Adjoint],
    solver: Callable[[], Solver],
    compile: str | None = FASTEST,
) -> Make:
    """The gradient of the flow by fixed steps; its setting is the number of steps."""

    def make(setup: Setup, setting: float | None) -> Runner:
        steps = setting or math.ceil(setup.t1 / setup.problem.flow_step(setup.t1) - 1e-9)
        steps = max(1, round(steps))
        field = odeopt.GradientFlow(setup.problem.loss)
        backend = _backend(setup, compile)
        opt = odeopt.ODEOptimizer(field, solver(), adjoint(), compile=backend)
        part = setup.t1 / steps
        return _runner(setup.problem, opt, steps, lambda n: odeopt.TimeGrid.uniform(n * part, n))

    return make


def stabilised(setup: Setup, setting: float | None) -> Runner:
    """The gradient of the flow by chosen steps; the setting is rtol."""
    rtol = setting or 3e-2
    solver = odeopt.StabilizedRK(rtol, rtol * 1e-2)
    field = odeopt.GradientFlow(setup.problem.loss)
    opt = odeopt.ODEOptimizer(field, solver, compile=_backend(setup, FASTEST))
    part = setup.t1 / setup.steps
    return _runner(setup.problem, opt, setup.steps, lambda n: odeopt.TimeGrid.uniform(n * part, 1))


def fastest_backend(device: torch.device) -> str:
    """The backend that compiles the fastest kernels for a device."""
    return "inductor-cpu" if device.type == "cpu" else "inductor"


def _backend(setup: Setup, compile: str | None) -> str | None:
    return fastest_backend(setup.problem.device) if compile == FASTEST else compile


def binomial(steps: int) -> CheckpointSchedule:
    """About 2 sqrt(N) kept states, with which no step is replayed twice."""
    return odeopt.Binomial(max(2, 2 * math.isqrt(steps)))


def density(steps: int) -> CheckpointSchedule:
    """Intervals of about sqrt(N) steps."""
    return odeopt.Density(max(1, math.isqrt(steps)))


def _runner(problem: Problem, opt: odeopt.ODEOptimizer, steps: int, grid: Grid) -> Runner:
    call = opt.value_and_grad(problem.loss, tasks=True)
    layout = problem.raveled()[1]

    def run(count: int) -> Outcome:
        found = call(problem.params, problem.tasks.train, grid(count), problem.tasks.validation)
        stats = found.stats
        return Outcome(
            layout.flatten(found.grads.params, "gradient"),
            {
                "gradient_evaluations": stats.gradient_evaluations, "hvps": stats.hvps,
                "replayed_steps": stats.replayed_steps, "stored_states": stats.stored_states,
                "compile_seconds": stats.compile_seconds,
            },
        )  # fmt: skip

    return Runner(steps, run)
