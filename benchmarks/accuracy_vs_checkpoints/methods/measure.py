"""The cells: one method on one problem at one horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import methods
from benchmarks.accuracy_vs_checkpoints.methods.problems import PROBLEMS, Inputs
from benchmarks.accuracy_vs_checkpoints.methods.sizes import LR, Sizes
from benchmarks.accuracy_vs_checkpoints.methods.targets import Target, Targets, flat
from benchmarks.harness import memory
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.harness.timing import once

FEW = 50


@dataclass(frozen=True)
class Entry:
    """A row of a table.

    Attributes:
        label: For reports.
        method: A name of `benchmarks.methods`.
        states: How many states A-MAML keeps at most; as many as steps where None.
    """

    label: str
    method: str
    states: int | None = None


def entries() -> tuple[Entry, ...]:
    """Every method, A-MAML twice."""
    found: list[Entry] = []
    for name in (*methods.PAPER, *methods.OTHERS):
        found.append(Entry(methods.LABELS[name], name))
        if name == "a-maml":
            found.append(Entry(f"{methods.LABELS[name]}, {FEW} states", name, FEW))
    return tuple(found)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per problem, horizon and method."""
    found: list[Cell] = []
    for problem in sizes.problems:
        make = partial(PROBLEMS[problem].make, sizes, settings.device)
        for t1 in sizes.horizons:
            targets = Targets(make, t1, sizes)
            for entry in entries():
                compute = partial(_compute, entry, t1, targets, sizes.repeats)
                found.append(Cell(key(problem, t1, entry), compute))
    return found


def key(problem: str, t1: float, entry: Entry) -> str:
    """The key of a cell."""
    return f"{problem} T={t1:g} {entry.label}"


def _compute(entry: Entry, t1: float, targets: Targets, repeats: int) -> dict[str, Any]:
    """Errors and costs, with `failure` and no numbers where there is no gradient.

    Where a guard refuses the gradient, `failure` names its error and the numbers are those of
    the same method without guards.
    """
    given = targets.inputs().to(torch.float32)
    try:
        sought = {"own": targets.own(entry.method), "flow": targets.flow()}
    except odeopt.OdeoptError as error:
        return {"failure": f"target: {type(error).__name__}", "message": str(error)}
    try:
        return {"failure": "", **_numbers(entry, t1, given, sought, repeats, odeopt.Safety())}
    except odeopt.OdeoptError as error:
        refused = {"failure": type(error).__name__, "message": str(error)}
    try:
        return {**refused, **_numbers(entry, t1, given, sought, 1, odeopt.Safety.off())}
    except odeopt.OdeoptError:
        return refused


def _numbers(
    entry: Entry,
    t1: float,
    given: Inputs,
    sought: dict[str, Target],
    repeats: int,
    safety: odeopt.Safety,
) -> dict[str, Any]:
    run = _call(entry, t1, given, safety)
    found = run()  # not timed: the first run loads what the others need
    device = given.tasks.train.x.device
    gradient = flat(found.grads.params).double()
    return {
        **{side: _compare(gradient, target) for side, target in sought.items()},
        "gradient_evaluations": found.stats.gradient_evaluations,
        "hvps": found.stats.hvps,
        "stored_states": found.stats.stored_states,
        "live_bytes": memory.peak_live_bytes(run, device),
        "seconds": median(once(run, device) for _ in range(repeats)),
    }


def _call(
    entry: Entry, t1: float, given: Inputs, safety: odeopt.Safety
) -> Callable[[], odeopt.MetaGradient]:
    steps = round(t1 / LR)
    states = steps if entry.states is None else min(entry.states, steps)
    inner = methods.Inner(LR, steps, states)
    method = methods.build(entry.method, given.problem, inner, safety=safety)
    hparams = method.init_hparams(given.params)
    batch = odeopt.TaskBatch(given.tasks.train, given.tasks.validation)
    return partial(method, given.params, batch, hparams)


def _compare(found: Tensor, target: Target) -> dict[str, float]:
    size = target.gradient.norm()
    cosine = torch.nn.functional.cosine_similarity(found, target.gradient, dim=0)
    return {
        "error": ((found - target.gradient).norm() / size).item(),
        "cosine": cosine.item(),
        "norm_ratio": (found.norm() / size).item(),
        "reference_error": target.error,
    }
