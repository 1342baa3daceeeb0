"""A-MAML with few kept states against exact MAML by `higher`, both in one process and run."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.cost.updates import cases
from benchmarks.cost.updates.cases import LR, PROBLEM, Inputs, Line
from benchmarks.harness import memory
from benchmarks.harness.timing import once

WANTED = {"times_as_fast": 5.0, "share_of_memory": 0.1, "cosine": 0.999}


def compare(
    given: Inputs,
    steps: int,
    states: int,
    compile: str | None,
    reference_steps: int,
    repeats: int,
) -> dict[str, Any]:
    """Seconds, memory and gradients of both.

    Args:
        given: Tasks and initialisation in float32.
        steps: Inner steps.
        states: States that A-MAML keeps.
        compile: How A-MAML's kernels are run.
        reference_steps: RK4 steps of the reference.
        repeats: Timed runs of each, one after the other in turn.

    Returns:
        For "a-maml" and "higher": seconds, live_bytes, live_bytes_per_task and the cosine to the
        gradient of the flow; the reference's own error, and the fields of `WANTED`.
    """
    device = given.tasks.train.x.device
    updates = {
        "a-maml": cases.update(Line("", "", "a-maml", states, compile), steps, given),
        "higher": cases.update(Line("", "", "higher"), steps, given),
    }
    gradients = {name: one.run() for name, one in updates.items()}  # compiles, too
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(repeats):
        for name, one in updates.items():
            seconds[name].append(once(one.run, device))
    target, own = reference(given, steps * LR, reference_steps)
    found: dict[str, Any] = {}
    for name, one in updates.items():
        live = memory.peak_live_bytes(one.run, device)
        found[name] = {
            "seconds": median(seconds[name]),
            "live_bytes": live,
            "live_bytes_per_task": live / one.together,
            "cosine": _cosine(gradients[name], target),
        }
    return {**found, "reference_error": own, **_verdict(found)}


def _verdict(found: dict[str, Any]) -> dict[str, float]:
    ours, theirs = found["a-maml"], found["higher"]
    return {
        "times_as_fast": theirs["seconds"] / ours["seconds"],
        "share_of_memory": ours["live_bytes_per_task"] / theirs["live_bytes_per_task"],
        "share_of_whole_memory": ours["live_bytes"] / theirs["live_bytes"],
        "cosine": ours["cosine"],
    }


def reference(given: Inputs, t1: float, steps: int) -> tuple[Tensor, float]:
    """The flow's meta-gradient in float64 by RK4 and its exact adjoint, and its own error.

    The error is that of order 4, from the same with half the steps.
    """
    params = {name: leaf.double() for name, leaf in given.params.items()}
    tasks = given.tasks.to(given.tasks.train.x.device, torch.float64)
    flow = odeopt.ODEOptimizer(odeopt.GradientFlow(PROBLEM.loss), odeopt.RK4())

    def gradient(count: int) -> Tensor:
        grid = odeopt.TimeGrid.uniform(t1, count)
        method = odeopt.InnerLoop(flow, PROBLEM.loss, grid)
        return cases.flat(method(params, (tasks.train, tasks.validation)).grads.params)

    fine, coarse = gradient(steps), gradient(steps // 2)
    return fine, ((coarse - fine).norm() / fine.norm()).item() / 15


def _cosine(found: Tensor, target: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(found.double(), target, dim=0).item()
