"""One cell, in a process of its own on one thread.

A short run first, which loads libraries and records kernels; then, under the memory
limit, the meta-gradient and the plain training in turn, as often as the time allows; then each once
more while allocations are recorded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.cost.long_loops import loops
from benchmarks.cost.long_loops.loops import OURS, PEERS, Loop
from benchmarks.cost.long_loops.sizes import Point
from benchmarks.harness import memory, processes
from benchmarks.harness.memory import LivePeak
from benchmarks.harness.timing import once
from benchmarks.problems import models
from odeopt import Stats
from odeopt.checkpoint.binomial import optimal_replays

WARM_UP = 3


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        line: A key of `loops.LABELS`.
        point: Parameters, steps and slots.
        repeats: Timed runs.
        memory_gib: Memory beyond what is in use after the short run.
        seconds: How long timed runs may take together.
        device: Where to compute.
        compile: How the kernels of odeopt are run.
    """

    line: str
    point: Point
    repeats: int
    memory_gib: float
    seconds: float
    device: str
    compile: str


def measure(job: Job) -> dict[str, Any]:
    """The result of a job: `outcome` "" and numbers, or why there are none."""
    return processes.guarded(lambda: _numbers(job), job.memory_gib)


def _numbers(job: Job) -> dict[str, Any]:
    device = torch.device(job.device)
    loop = loops.make(job.point, device)
    runs = runnables(job.line, loop, job.compile)
    with memory.at_most(int(job.memory_gib * memory.GIB), device):
        seconds, stats = _timed(runs, job, device)
    return {
        **_ratios(seconds),
        **{f"{name}_bytes": _peak(name, job, loop) for name in runs},
        **_counts(stats, loop),
        "parameters": models.count(loop.params),
        "runs": len(seconds["meta"]),
    }


def runnables(line: str, loop: Loop, compile: str) -> dict[str, Callable[[], Any]]:
    """What is timed, after a short run of the same: the gradient and plain training.

    Args:
        line: A key of `loops.LABELS`.
        loop: The training.
        compile: How the kernels of odeopt are run.
    """
    runs: dict[str, Callable[[], Any]] = {}
    opt = loops.optimizer(loop, compile)
    for point in (loop.point._replace(steps=WARM_UP), loop.point):
        sized = loop._replace(point=point)
        runs = {"plain": loops.plain(sized)}
        if line == OURS:
            runs |= {"forward": loops.forward(sized, opt), "meta": loops.ours(sized, opt)}
        else:
            runs["meta"] = PEERS[line](sized)
        if point.steps == WARM_UP:
            for run in runs.values():
                run()
            gc.collect()
    return runs


def _timed(
    runs: dict[str, Callable[[], Any]], job: Job, device: torch.device
) -> tuple[dict[str, list[float]], Stats | None]:
    """Seconds of each, in turn, and the counts of the gradient; at least once."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    stats: Stats | None = None

    def differentiate() -> None:
        nonlocal stats
        _, stats = runs["meta"]()

    timed = runs | {"meta": differentiate}
    turn = spent = 0.0
    while spent == 0 or (len(seconds["meta"]) < job.repeats and spent + turn < job.seconds):
        for name, run in timed.items():
            seconds[name].append(once(run, device))
        turn = sum(values[-1] for values in seconds.values())
        spent += turn
    return seconds, stats


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the seconds, and of the ratios to plain training in the same turn."""
    found = {f"{name}_seconds": median(values) for name, values in seconds.items()}
    for name in seconds.keys() - {"plain"}:
        pairs = zip(seconds[name], seconds["plain"], strict=True)
        found[f"{name}_ratio"] = median(own / plain for own, plain in pairs)
    return found


def _peak(name: str, job: Job, loop: Loop) -> int:
    """The peak of live tensors above those before, in a run of its own."""
    device = torch.device(job.device)
    if device.type == "cuda":
        runs = runnables(job.line, loop, job.compile)
        return memory.peak_live_bytes(runs[name], device)
    peak = LivePeak()
    stream = loop.stream

    def ticking(k: int) -> Any:
        if k > WARM_UP:
            peak.tick()
        return stream(k)

    run = runnables(job.line, loop._replace(stream=ticking), job.compile)[name]
    with peak:
        run()
    return peak.bytes


def _counts(stats: Stats | None, loop: Loop) -> dict[str, int]:
    """Replayed steps and the least number of them; nothing for other packages."""
    if stats is None:
        return {}
    bound = optimal_replays(loop.point.steps, loop.point.slots)
    return {"replayed": stats.replayed_steps, "bound": bound, "kept_bytes": stats.stored_bytes}
