"""One cell, in a process of its own on one thread.

In this order:

1. the warm-up, with one inner step, which loads libraries and compiles kernels;
2. the first run, under the memory limit, during which the growth of resident memory is read;
3. timed runs, as many as the time allows (the first run counts if it has taken too long);
4. one more run, not timed, during which allocations are recorded (`benchmarks.harness.memory`).
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

import odeopt
from benchmarks.cost.updates import cases, check
from benchmarks.cost.updates.cases import Update
from benchmarks.cost.updates.sizes import Check
from benchmarks.harness import memory, processes
from benchmarks.harness.timing import once


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        line: The name of a line; "check" for the comparison with `higher`.
        steps: Inner steps.
        tasks: Tasks.
        shots: Training points of a task.
        repeats: Timed runs.
        memory_gib: Memory beyond what is in use after the warm-up.
        seconds: How long timed runs may take together.
        device: Where to compute.
        check: For "check".
    """

    line: str
    steps: int
    tasks: int
    shots: int
    repeats: int
    memory_gib: float
    seconds: float
    device: str
    check: Check | None = None


def measure(job: Job) -> dict[str, Any]:
    """The result of a job.

    Returns:
        outcome: "" where there are numbers, else why there are none; the numbers are seconds,
        runs, live_bytes, resident_bytes (None on CUDA), together and warm_up_seconds.
    """
    try:
        return processes.guarded(lambda: _numbers(job), job.memory_gib)
    except odeopt.OdeoptError as error:
        return {"outcome": type(error).__name__, "message": str(error)}


def _numbers(job: Job) -> dict[str, Any]:
    device = torch.device(job.device)
    given = cases.inputs(job.tasks, job.shots, device, torch.float32)
    if job.line == "check":
        assert job.check is not None, "a check has sizes"
        return check.compare(given, **asdict(job.check))
    line = next(one for one in cases.lines() if one.name == job.line)
    update = cases.update(line, job.steps, given)
    begin = perf_counter()
    update.warm_up()
    found = {"warm_up_seconds": perf_counter() - begin, "together": update.together}
    gc.collect()
    peak = memory.ResidentPeak()
    with memory.at_most(int(job.memory_gib * memory.GIB), device):
        first = once(update.run, device)
        resident = peak.bytes() if device.type == "cpu" else None
        runs = _timed(update, job, first, device)
    return {
        **found,
        "seconds": median(runs),
        "runs": len(runs),
        "resident_bytes": resident,
        "live_bytes": memory.peak_live_bytes(update.run, device),
    }


def _timed(update: Update, job: Job, first: float, device: torch.device) -> list[float]:
    """Seconds of the runs after the first; of the first alone if there is no time for others."""
    runs: list[float] = []
    while len(runs) < job.repeats and first + sum(runs) + first < job.seconds:
        runs.append(once(update.run, device))
    return runs or [first]
