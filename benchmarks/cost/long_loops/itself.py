"""A long solve against its own kernels.

In a process of its own, on one thread: after a short run which compiles the kernels, the gradient
through a training by Adam and a loop that does nothing but call the same compiled kernels as often
(each step that is made or made again, and each pullback) are timed in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import odeopt
from benchmarks.cost.long_loops import loops
from benchmarks.cost.long_loops.loops import Loop
from benchmarks.cost.long_loops.sizes import Point
from benchmarks.harness import processes
from benchmarks.harness.timing import once
from benchmarks.problems import classification
from odeopt.adjoint.base import Interval, LocalAdjoint
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.engine.run import make_kernels
from odeopt.gradient.value_and_grad import Beginning

LR = 1e-3
WARM_UP = 3


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        point: Parameters, steps and slots.
        compile: How kernels are run.
        repeats: Timed runs of each.
        device: Where to compute.
        memory_gib: Memory beyond what is in use at the start.
    """

    point: Point
    compile: str
    repeats: int
    device: str
    memory_gib: float


def measure(job: Job) -> dict[str, Any]:
    """The result of a job: `outcome` "" and numbers, or why there are none."""
    return processes.guarded(lambda: _numbers(job), job.memory_gib)


def _numbers(job: Job) -> dict[str, Any]:
    device = torch.device(job.device)
    loop = loops.make(job.point, device)
    opt = odeopt.ODEOptimizer(
        odeopt.Adam(classification.mean_loss(loops.model(loop.point.parameters))),
        checkpoints=odeopt.Binomial(loop.point.slots),
        compile=job.compile,
    )
    short = loop._replace(point=loop.point._replace(steps=WARM_UP))
    gradient(opt, short)()
    advances, pulls = loop.point.steps, loop.point.steps
    advances += optimal_replays(loop.point.steps, loop.point.slots)
    alone = kernels(opt, loop, advances, pulls)
    stats: odeopt.Stats | None = None

    def solve() -> None:
        nonlocal stats
        stats = gradient(opt, loop)()

    pairs = [(once(solve, device), once(alone, device)) for _ in range(job.repeats)]
    assert stats is not None, "at least one repeat"
    return {
        "seconds": median(own for own, _ in pairs),
        "kernel_seconds": median(bare for _, bare in pairs),
        "ratio": median(own / bare for own, bare in pairs),
        "advances": stats.steps + stats.replayed_steps,
        "bound": advances,
        "stored_states": stats.stored_states,
    }


def gradient(opt: odeopt.ODEOptimizer, loop: Loop) -> Callable[[], odeopt.Stats]:
    """The gradient of the validation loss through the training."""
    call = opt.value_and_grad(classification.mean_loss(loops.model(loop.point.parameters)))
    grid = odeopt.TimeGrid.from_lr(LR, loop.point.steps)
    stream = odeopt.Stream(loop.stream)
    return lambda: call(loop.params, stream, grid, loop.validation).stats


@torch.no_grad()
def kernels(opt: odeopt.ODEOptimizer, loop: Loop, advances: int, pulls: int) -> Callable[[], None]:
    """The optimiser's own compiled kernels, called so many times on the states of the training.

    Args:
        opt: With the kernels compiled.
        loop: The training.
        advances: Calls of the step; after the end of the training it begins again.
        pulls: Calls of the pullback, at the last state.
    """
    choices = opt.value_and_grad(lambda params, batch: 0.0).choices
    grid = odeopt.TimeGrid.from_lr(LR, loop.point.steps)
    begin = Beginning(opt.field, loop.params, None, None)
    problem = begin.problem(odeopt.Stream(loop.stream), grid, False)
    bound = make_kernels(choices, problem, odeopt.Stats())
    adjoint = choices.adjoint
    assert isinstance(adjoint, LocalAdjoint), "the exact one"
    step, pull, y0 = bound.step(), bound.pull(adjoint), problem.y0
    times = torch.arange(loop.point.steps, dtype=y0.dtype, device=y0.device).unbind()
    lr = torch.tensor(LR, dtype=y0.dtype, device=y0.device)

    @torch.no_grad()
    def run() -> None:
        y = y0
        for index in range(advances):
            k = index % loop.point.steps
            y = step(k, times[k], lr, y0 if k == 0 else y)
        lam = torch.ones_like(y)
        for k in reversed(range(pulls)):
            lam = pull(k, Interval(times[k], lr, y, y), lam).lam

    return run
