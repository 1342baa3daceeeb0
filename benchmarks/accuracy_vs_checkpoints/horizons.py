"""Longer horizons, with backsolve beside."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import odeopt
from benchmarks.accuracy_vs_checkpoints.batched import (
    References,
    flow_optimizer,
    guarded,
    reference_steps,
    start,
)
from benchmarks.accuracy_vs_checkpoints.cases import Case, cosmixture_case
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness import markdown
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell

METHODS = {
    "modified Euler": (odeopt.ModifiedEuler(), odeopt.Density),
    "modified Euler, graded": (odeopt.ModifiedEuler(), odeopt.Graded),
    "RK4 + Hermite": (odeopt.RK4(), odeopt.Density),
    "RK4 + Hermite, graded": (odeopt.RK4(), odeopt.Graded),
}
Make = Callable[[odeopt.Safety], odeopt.ODEOptimizer]


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon, number of states and method, and one for backsolve."""
    references = References(start(cosmixture_case(), range(sizes.horizon_seeds), settings.device))
    found: list[Cell] = []
    for t1 in sizes.horizons:
        for states in sizes.horizon_states:
            for method in METHODS:
                compute = partial(_compute, references, t1, states, method)
                found.append(Cell(f"horizon T={t1} N={states} {method}", compute))
        found.append(Cell(f"horizon T={t1} backsolve", partial(_backsolve, references, t1)))
    return found


def _compute(references: References, t1: float, states: int, method: str) -> dict[str, Any]:
    backward, nodes = METHODS[method]
    target, own = references(t1)

    def make(safety: odeopt.Safety) -> odeopt.ODEOptimizer:
        return flow_optimizer(
            references.begin.case, backward, nodes(states), safety, compile="trace"
        )

    fine = states if nodes is odeopt.Density else max(4 * states, 512)
    grid = odeopt.TimeGrid.uniform(t1, fine)
    return {**guarded(make, references.begin, grid, target), "reference_error": own}


def _backsolve(references: References, t1: float) -> dict[str, Any]:
    target, own = references(t1)
    grid = odeopt.TimeGrid.uniform(t1, reference_steps(references.begin.case, t1))
    make = partial(_backsolve_optimizer, references.begin.case)
    return {**guarded(make, references.begin, grid, target), "reference_error": own}


def _backsolve_optimizer(case: Case, safety: odeopt.Safety) -> odeopt.ODEOptimizer:
    flow = odeopt.GradientFlow(case.loss)
    adjoint = odeopt.BacksolveAdjoint()
    return odeopt.ODEOptimizer(flow, odeopt.RK4(), adjoint, safety=safety, compile="trace")


def section(results: dict[str, dict[str, Any]], sizes: Sizes) -> str:
    """The table as Markdown, with the guards that fired."""
    rows: list[list[Any]] = []
    fired: list[str] = []
    for t1 in sizes.horizons:
        backsolve = results[f"horizon T={t1} backsolve"]
        for states in sizes.horizon_states:
            found = [results[f"horizon T={t1} N={states} {method}"] for method in METHODS]
            own = markdown.scientific(found[0]["reference_error"])
            rows.append([f"{t1:g}", states, *(show(c) for c in found), show(backsolve), own])
            fired += [
                f"- T = {t1}, {states} states, {method}: {cell['guard']}"
                for method, cell in zip(METHODS, found, strict=True)
                if cell["guard"]
            ]
        if backsolve["guard"]:
            fired.append(f"- T = {t1}, backsolve: {backsolve['guard']}")
    headers = ["T", "states", *METHODS, "backsolve (no states)", "error of the reference"]
    guards = "\n".join(fired) or "- none"
    return f"{_INTRODUCTION}\n\n{markdown.table(headers, rows)}\n\nGuards that fired:\n\n{guards}"


def show(cell: dict[str, Any]) -> str:
    """The median error; one that a guard refuses is called unstable, its error in brackets."""
    error = median(cell["errors"])
    if not cell["guard"]:
        return markdown.scientific(error)
    bare = f"{error:.0e}" if error == error else "not finite"  # noqa: PLR0124  (NaN)
    return f"unstable ({bare})"


_INTRODUCTION = """## Longer horizons

The same against the flow's gradient at longer horizons, median over the starts. *Unstable* cells
are those that odeopt refuses with its default `Safety`; in brackets the error that the gradient
would have had. *Backsolve* integrates state and adjoint back from T together (RK4, with the
steps of the reference) and keeps nothing."""
