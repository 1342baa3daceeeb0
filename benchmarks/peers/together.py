"""Several contenders in one process, in turn."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from benchmarks.harness.timing import once
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.runner import Runner, Setup
from benchmarks.peers.targets import Aim, Targets, compute


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        entries: Pairs (key of `CONTENDERS`, setting or None).
        aim: The point.
        dtype: "float32" or "float64".
        rounds: Timed runs of each.
    """

    entries: tuple[tuple[str, float | None], ...]
    aim: Aim
    dtype: str
    rounds: int


def measure(job: Job) -> dict[str, Any]:
    """For each entry that is installed its seconds, one per round, its errors and counts."""
    found, own = compute(job.aim.setup(torch.float64))
    targets, setup = Targets(found), job.aim.setup(getattr(torch, job.dtype))
    entries: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Runner]] = []
    for name, setting in job.entries:
        if CONTENDERS[name].installed:
            entry, runner = _first(name, setting, setup, targets)
            entries.append(entry)
            if runner is not None:
                ready.append((entry, runner))
    for _ in range(job.rounds):
        for entry, runner in ready:
            gc.collect()
            seconds = once(lambda own=runner: own.run(own.steps), setup.problem.device)
            entry["seconds"].append(seconds)
    return {"outcome": "", "entries": entries, "reference_error": own}


def _first(
    name: str, setting: float | None, setup: Setup, targets: Targets
) -> tuple[dict[str, Any], Runner | None]:
    """The warm-up and a run that is not timed."""
    entry: dict[str, Any] = {"contender": name, "setting": setting, "outcome": "", "seconds": []}
    begin = perf_counter()
    try:
        runner = CONTENDERS[name].make(setup, setting)
        runner.run(1)
        entry["prepare_seconds"] = perf_counter() - begin
        outcome = runner.run(runner.steps)
    except Exception as error:  # whatever a package does not support
        return entry | {"outcome": type(error).__name__, "message": str(error)[:200]}, None
    return entry | {"errors": targets.errors(outcome.gradient), **outcome.counts}, runner
