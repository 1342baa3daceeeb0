"""The cells: each is one child process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import takewhile
from typing import Any

from benchmarks.cost.updates import cases, resident
from benchmarks.cost.updates.cases import Line
from benchmarks.cost.updates.child import Job, measure
from benchmarks.cost.updates.sizes import Sizes
from benchmarks.harness import processes
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell

CHECK = "check"
START_UP = 60.0
"""Seconds that a process may take to start and to compile, besides the time of its cell."""

SLACK = 3.0
"""The first and the recorded run take time as well."""

Cells = dict[str, dict[str, Any]]


def measured_lines(sizes: Sizes) -> tuple[Line, ...]:
    """The lines of a run, those whose package is missing included."""
    names = sizes.lines
    return tuple(line for line in cases.lines() if names is None or line.name in names)


def cells(settings: Settings, sizes: Sizes, fingerprint: str) -> list[Cell]:
    """One cell per line and number of steps, and the comparison with `higher`."""
    find = partial(settings.store.get, fingerprint=fingerprint)
    found: list[Cell] = []
    for line in measured_lines(sizes):
        if not line.installed:
            continue
        for steps in counts(line, sizes):
            compute = partial(_compute, line, steps, settings, sizes, find)
            found.append(Cell(key(line, steps), compute))
    if _can_check():
        found.append(Cell(CHECK, partial(_check, settings, sizes)))
    if settings.device.type == "cpu":
        found += resident.cells(sizes.state_mib, sizes.state_steps)
    return found


def _can_check() -> bool:
    return next(line for line in cases.lines() if line.name == "higher").installed


def counts(line: Line, sizes: Sizes) -> tuple[int, ...]:
    """The numbers of steps that are measured; one for a line that does not depend on them."""
    return sizes.steps if line.varies else sizes.steps[-1:]


def key(line: Line, steps: int) -> str:
    """The key of a cell."""
    return f"{line.name} steps={steps}" if line.varies else line.name


def of_line(results: Cells, line: Line, sizes: Sizes) -> dict[int, dict[str, Any]]:
    """The cells of a line by steps; empty where its package is missing."""
    if not line.installed:
        return {}
    return {steps: results[key(line, steps)] for steps in sizes.steps}


def _compute(
    line: Line,
    steps: int,
    settings: Settings,
    sizes: Sizes,
    find: Callable[[str], dict[str, Any] | None],
) -> dict[str, Any]:
    """One cell; larger ones are not tried where a smaller one took too long or did not fit."""
    for fewer in takewhile(lambda count: count < steps, counts(line, sizes)):
        missing = processes.after_failure(find(key(line, fewer)), f"{fewer} steps")
        if missing is not None:
            return missing
    return run_child(_job(line.name, steps, settings, sizes))


def _check(settings: Settings, sizes: Sizes) -> dict[str, Any]:
    return run_child(_job(CHECK, sizes.check.steps, settings, sizes))


def _job(line: str, steps: int, settings: Settings, sizes: Sizes) -> Job:
    return Job(
        line, steps, sizes.tasks, sizes.shots, sizes.repeats, sizes.memory_gib, sizes.seconds,
        str(settings.device), sizes.check if line == CHECK else None,
    )  # fmt: skip


def run_child(job: Job) -> dict[str, Any]:
    """The result of a job in a process of its own.

    Raises:
        ChildError: It ended with an error that is no result.
    """
    limit = START_UP + SLACK * job.seconds
    return processes.run(measure, job, limit=limit)
