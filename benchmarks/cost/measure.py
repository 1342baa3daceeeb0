"""The cells: each is one child process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks.cost import cases
from benchmarks.cost.cases import Line
from benchmarks.cost.child import DID_NOT_FIT, Job
from benchmarks.cost.sizes import Sizes
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell

ROOT = Path(__file__).resolve().parents[2]
CHECK = "check"
DID_NOT_FINISH = "did not finish"
NOT_TRIED = "not tried"
START_UP = 60.0
"""Seconds that a process may take to start and to compile, besides the time of its cell."""

SLACK = 3.0
"""The first and the recorded run take time as well."""

_OUT_OF_MEMORY = (signal.SIGKILL, signal.SIGABRT)
"""How the system, and C++, end a process for which there is no memory."""

Cells = dict[str, dict[str, Any]]


class ChildError(RuntimeError):
    """A process ended with an error that is no result."""


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
        smaller = find(key(line, fewer)) or {}
        if smaller.get("outcome") in (DID_NOT_FIT, DID_NOT_FINISH):
            return {"outcome": NOT_TRIED, "message": f"{fewer} steps {smaller['outcome']}"}
    return run_child(_job(line.name, steps, settings, sizes))


def _check(settings: Settings, sizes: Sizes) -> dict[str, Any]:
    return run_child(_job(CHECK, sizes.check.steps, settings, sizes))


def _job(line: str, steps: int, settings: Settings, sizes: Sizes) -> Job:
    return Job(
        line, steps, sizes.tasks, sizes.shots, sizes.repeats, sizes.memory_gib, sizes.seconds,
        str(settings.device), asdict(sizes.check) if line == CHECK else None,
    )  # fmt: skip


def run_child(job: Job) -> dict[str, Any]:
    """The result of a job in a process of its own.

    Raises:
        ChildError: It ended with an error that is no result.
    """
    command = [sys.executable, "-m", "benchmarks.cost.child", job.to_json()]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    limit = START_UP + SLACK * job.seconds
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"outcome": DID_NOT_FINISH, "message": f"more than {limit:g} seconds"}
    if -ended.returncode in _OUT_OF_MEMORY:
        return {"outcome": DID_NOT_FIT, "message": f"ended by signal {-ended.returncode}"}
    if ended.returncode != 0:
        raise ChildError(f"{' '.join(command)} failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])
