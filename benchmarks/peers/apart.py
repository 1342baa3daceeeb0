"""One point: every contender in a process of its own, asked in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import processes
from benchmarks.peers import child, targets
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.sizes import Limits, Point
from benchmarks.peers.targets import Aim

NOT_INSTALLED = {"outcome": "not installed", "message": "its package is missing"}
CACHE = "TORCHINDUCTOR_CACHE_DIR"

Ask = Callable[[str], dict[str, Any]]
"""Puts a request to a process and waits for the answer."""


def compute(point: Point, limits: Limits, device: str, cache: str) -> dict[str, Any]:
    """Seconds, memory and errors of every contender of a point.

    Args:
        point: Which.
        limits: Of the processes.
        device: Where to compute.
        cache: The folder in which compiled kernels are kept for later processes.

    Returns:
        "contenders": for each an `outcome`, "" where there are numbers, and these: `seconds`, of
        all rounds, or of the first run where that took too long; and what `child` answers.
    """
    with TemporaryDirectory() as folder, ExitStack() as running:
        path = Path(folder) / "targets.pt"
        aim = Aim(point.problem, point.tasks, point.steps, device)
        own = processes.run(targets.write, targets.Job(aim, str(path)), limit=limits.start)
        if own.get("outcome"):
            return {"contenders": dict.fromkeys(point.contenders, own), "reference_error": None}
        found: dict[str, dict[str, Any]] = {}
        alive: dict[str, Ask] = {}
        for name in point.contenders:
            if not CONTENDERS[name].installed:
                found[name] = NOT_INSTALLED
                continue
            job = child.Job(name, aim, point.dtype, str(path), limits.memory_gib)
            process = running.enter_context(processes.Child({CACHE: cache}))
            one = partial(process.ask, child.answer, job, limit=limits.start)
            found[name] = one(child.FIRST)
            if not found[name]["outcome"]:
                alive[name] = one
        _rounds(found, alive, limits)
        return {"contenders": found, **own}


def _rounds(found: dict[str, dict[str, Any]], alive: dict[str, Ask], limits: Limits) -> None:
    first = {name: found[name]["seconds"] for name in alive}
    seconds: dict[str, list[float]] = {name: [] for name in alive}
    for number in range(1, limits.rounds + 1):
        for name, one in alive.items():
            if number * first[name] < limits.seconds:
                _add(seconds, found, name, one(child.TIME))
    for name, one in alive.items():
        if not found[name]["outcome"]:
            found[name] |= one(child.MEMORY)
        found[name]["seconds"] = seconds[name] or [first[name]]


def _add(
    seconds: dict[str, list[float]], found: dict[str, dict[str, Any]], name: str,
    answer: dict[str, Any],
) -> None:  # fmt: skip
    if answer["outcome"]:
        found[name] |= answer
    else:
        seconds[name].append(answer["seconds"])


def spread(seconds: Sequence[float]) -> str:
    """The least and the greatest, where there are several."""
    return f"{min(seconds):.3g} to {max(seconds):.3g}" if len(seconds) > 1 else "one run"
