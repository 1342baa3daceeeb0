"""Table 5: CosMixture at short horizons, against the gradient of the flow."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import odeopt
from benchmarks.accuracy_vs_checkpoints.batched import (
    FINE,
    References,
    errors,
    flow_optimizer,
    gradients,
    start,
)
from benchmarks.accuracy_vs_checkpoints.cases import cosmixture_case
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness import markdown, plots
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems import published

METHODS = {
    "Euler": odeopt.Euler(),
    "modified Euler": odeopt.ModifiedEuler(),
    "RK4 + Hermite": odeopt.RK4(),
}
NODES = {"uniform": odeopt.Density, "graded": odeopt.Graded}


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon, number of states, method and kind of nodes."""
    references = References(start(cosmixture_case(), range(sizes.seeds), settings.device))
    axes = (sizes.table_5_horizons, sizes.table_5_states, METHODS, NODES)
    return [Cell(_key(*what), partial(_compute, references, *what)) for what in product(*axes)]


def _key(t1: float, states: int, method: str, nodes: str) -> str:
    return f"table5 T={t1} N={states} {method} {nodes}"


def _compute(
    references: References, t1: float, states: int, method: str, nodes: str
) -> dict[str, Any]:
    target, own = references(t1)
    case = references.begin.case
    opt = flow_optimizer(case, METHODS[method], NODES[nodes](states))
    grid = odeopt.TimeGrid.uniform(t1, max(FINE, states))
    if nodes == "uniform":
        grid = odeopt.TimeGrid.uniform(t1, states)
    found = gradients(opt, references.begin, grid)
    error = errors(found.gradients, target)
    return {
        "mean": error.mean().item(),
        "deviation": error.std(correction=0).item(),
        "median": error.median().item(),
        "worst": error.max().item(),
        "reference_error": own,
        "gradient_evaluations": found.stats.gradient_evaluations,
        "hvps": found.stats.hvps,
    }


def section(results: dict[str, dict[str, Any]], settings: Settings, sizes: Sizes) -> str:
    """The tables and the plot as Markdown."""
    parts = [_INTRODUCTION]
    for t1 in sizes.table_5_horizons:
        own = results[_key(t1, sizes.table_5_states[0], "Euler", "uniform")]["reference_error"]
        rows = [_row(results, t1, states) for states in sizes.table_5_states]
        headers = ["states", "published", *(f"{m}, {n}" for m in METHODS for n in NODES)]
        parts.append(
            f"**T = {t1}** (the reference's own error is {markdown.scientific(own)})\n\n"
            + markdown.table(headers, rows)
        )
    t1 = sizes.table_5_horizons[-1]
    _plot(results, settings, sizes, t1)
    parts.append(f"![Table 5 at T = {t1}](table5.png)")
    return "\n\n".join(parts)


def _row(results: dict[str, dict[str, Any]], t1: float, states: int) -> list[Any]:
    place = published.TABLE_5_STATES.index(states)
    found = [results[_key(t1, states, m, n)] for m in METHODS for n in NODES]
    return [
        states,
        markdown.with_spread(*published.TABLE_5[t1][place]),
        *(markdown.with_spread(cell["mean"], cell["deviation"]) for cell in found),
    ]


def _plot(results: dict[str, dict[str, Any]], settings: Settings, sizes: Sizes, t1: float) -> None:
    states = sizes.table_5_states
    printed = [published.TABLE_5[t1][published.TABLE_5_STATES.index(n)].mean for n in states]
    lines = [plots.Series("published", states, printed, "--")]
    for method in METHODS:
        for nodes, style in (("uniform", "-"), ("graded", "--")):
            means = [results[_key(t1, n, method, nodes)]["mean"] for n in states]
            lines.append(plots.Series(f"{method}, {nodes}", states, means, style))
    labels = plots.Labels(
        f"CosMixture, T = {t1}: error of the flow's gradient", "kept states", "relative L2 error"
    )
    plots.loglog(settings.store.directory / "table5.png", labels, lines)


_INTRODUCTION = """## Table 5: CosMixture at short horizons

Relative error of the gradient of the *flow*, mean ± deviation over random starts and tasks;
Dormand-Prince forward (tolerance 1e-10), a continuous adjoint backward on N kept states, evenly
spread or graded. The reference is RK4 with its exact adjoint on a much finer grid.

The published figures are not errors: they are distances to the same method's own result with 1000
states, and they shrink like 1/N - 1/1000, that is with first order, where the method of the text
is of second order. *Euler* is what that order belongs to."""
