"""Several contenders in one process, in turn: `python -m benchmarks.peers.together JOB`."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict, dataclass
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
        aim: The fields of an `Aim`.
        dtype: "float32" or "float64".
        rounds: Timed runs of each.
    """

    entries: tuple[tuple[str, float | None], ...]
    aim: dict[str, Any]
    dtype: str
    rounds: int

    def to_json(self) -> str:
        """The argument of the process."""
        return json.dumps(asdict(self))


def measure(job: Job) -> dict[str, Any]:
    """For each entry that is installed its seconds, one per round, its errors and counts."""
    aim = Aim(**job.aim)
    found, own = compute(aim.setup(torch.float64))
    targets, setup = Targets(found), aim.setup(getattr(torch, job.dtype))
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


def main() -> None:
    """Measure the job of the command line."""
    torch.set_num_threads(1)
    print(json.dumps(measure(Job(**json.loads(sys.argv[1]))), sort_keys=True))


if __name__ == "__main__":
    main()
