"""A contender in a process of its own.

It is asked in this order: "first", for a warm-up with one step (which loads
libraries and compiles) and the first run, during which the growth of resident memory is read;
"time", for one more timed run, as often as wanted; "memory", for a run in which allocations are
recorded.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.harness import memory, processes
from benchmarks.harness.timing import once
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.runner import Outcome, Runner
from benchmarks.peers.targets import Aim, Targets

FIRST, TIME, MEMORY = "first", "time", "memory"


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        contender: A key of `CONTENDERS`.
        aim: The point.
        dtype: "float32" or "float64".
        targets: The file with the targets.
        memory_gib: Memory beyond what is in use after the warm-up.
    """

    contender: str
    aim: Aim
    dtype: str
    targets: str
    memory_gib: float


class Measured:
    """Answers requests about one contender."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device(job.aim.device)
        self._runner: Runner | None = None

    def answer(self, request: str) -> dict[str, Any]:
        """The numbers with `outcome` "", or `outcome` and `message`."""
        ways = {FIRST: self._first, TIME: self._time, MEMORY: self._memory}
        try:
            return processes.guarded(ways[request], self._job.memory_gib)
        except Exception as error:  # whatever a package does not support
            reason = (str(error).strip().splitlines() or [""])[0]
            return {"outcome": type(error).__name__, "message": reason[:200]}

    def _first(self) -> dict[str, Any]:
        begin = perf_counter()
        setup = self._job.aim.setup(getattr(torch, self._job.dtype))
        self._runner = CONTENDERS[self._job.contender].make(setup, None)
        self._runner.run(1)
        prepared = perf_counter() - begin
        gc.collect()
        found: list[Outcome] = []
        peak = memory.ResidentPeak()
        with memory.at_most(int(self._job.memory_gib * memory.GIB), self._device):
            seconds = once(lambda: found.append(self._run()), self._device)
        resident = peak.bytes() if self._device.type == "cpu" else None
        errors = Targets.read(Path(self._job.targets)).errors(found[0].gradient)
        return {
            "prepare_seconds": prepared, "seconds": seconds, "resident_bytes": resident,
            "errors": errors, "steps": self._runner.steps, **found[0].counts,
        }  # fmt: skip

    def _time(self) -> dict[str, Any]:
        gc.collect()
        return {"seconds": once(self._run, self._device)}

    def _memory(self) -> dict[str, Any]:
        return {"live_bytes": memory.peak_live_bytes(self._run, self._device)}

    def _run(self) -> Outcome:
        assert self._runner is not None, "it was asked for the first run first"
        return self._runner.run(self._runner.steps)


_OPEN: list[Measured] = []
"""The one of this process."""


def answer(job: Job, request: str) -> dict[str, Any]:
    """The answer to a request about a job, which is the same each time."""
    if not _OPEN:
        _OPEN.append(Measured(job))
    return _OPEN[0].answer(request)
