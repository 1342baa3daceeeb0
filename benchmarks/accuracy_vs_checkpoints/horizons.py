"""Longer horizons, with backsolve beside, and real inputs."""

from __future__ import annotations

from functools import partial
from itertools import product
from statistics import median
from typing import Any

import odeopt
from benchmarks.accuracy_vs_checkpoints import cases
from benchmarks.accuracy_vs_checkpoints.cases import FINE, Case, Sizes, Starts
from benchmarks.harness import markdown
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Settings
from benchmarks.problems.data_files import MissingDataError

METHODS = {
    "modified Euler": (odeopt.ModifiedEuler(), odeopt.Density),
    "modified Euler, graded": (odeopt.ModifiedEuler(), odeopt.Graded),
    "RK4 + Hermite": (odeopt.RK4(), odeopt.Density),
    "RK4 + Hermite, graded": (odeopt.RK4(), odeopt.Graded),
}
T1 = 5.0
SEEDS = 2
"""Of real inputs."""


def horizon_cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon, number of states and method, and one for backsolve."""
    starts = Starts(cases.cosmixture_case(), range(sizes.horizon_seeds), settings.device)
    chosen: list[Cell] = []
    for t1 in sizes.horizons:
        for n, method in product(sizes.horizon_states, METHODS):
            compute = partial(_compute, starts, t1, n, method, "trace")
            chosen.append(Cell(f"horizon T={t1} N={n} {method}", compute))
        chosen.append(Cell(f"horizon T={t1} backsolve", partial(_backsolve, starts, t1)))
    return chosen


def input_cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per input, number of states and method."""
    chosen: list[Cell] = []
    for case in _inputs(settings)[0]:
        starts = Starts(case, range(SEEDS), settings.device)
        chosen += [
            Cell(f"inputs {case.name} N={n} {method}", partial(_compute, starts, T1, n, method))
            for n in sizes.input_states
            for method in METHODS
        ]
    return chosen


def _inputs(settings: Settings) -> tuple[list[Case], str]:
    """The cases, and why one is missing."""
    digits = list(cases.digits_cases())
    if settings.data is None:
        return digits, "No data folder was given (`--data`), so ratings are left out."
    try:
        return [*digits, cases.ratings_case(settings.data)], ""
    except MissingDataError as error:
        return digits, f"Ratings are left out: {error}"


def _compute(
    starts: Starts, t1: float, states: int, method: str, compile: str | None = None
) -> dict[str, Any]:
    backward, nodes = METHODS[method]

    def make(safety: odeopt.Safety) -> odeopt.ODEOptimizer:
        return cases.flow_optimizer(starts.case, backward, nodes(states), safety, compile)

    steps = states if nodes is odeopt.Density else max(4 * states, FINE)
    return starts.guarded(make, t1, steps)


def _backsolve(starts: Starts, t1: float) -> dict[str, Any]:
    flow = odeopt.GradientFlow(starts.case.problem.loss)
    make = partial(
        odeopt.ODEOptimizer, flow, odeopt.RK4(), odeopt.BacksolveAdjoint(), None, compile="trace"
    )
    steps = cases.reference_steps(starts.case, t1)
    return starts.guarded(lambda safety: make(safety=safety), t1, steps)


def horizon_section(results: Cells, sizes: Sizes) -> str:
    """The table of horizons, with the guards that fired."""
    rows: list[list[Any]] = []
    fired: list[str] = []
    for t1 in sizes.horizons:
        backsolve = results[f"horizon T={t1} backsolve"]
        for n in sizes.horizon_states:
            own = {method: results[f"horizon T={t1} N={n} {method}"] for method in METHODS}
            rows.append([f"{t1:g}", n, *_entries([*own.values(), backsolve])])
            fired += [
                f"- T = {t1}, {n} states, {method}: {cell['guard']}"
                for method, cell in own.items()
                if cell["guard"]
            ]
        if backsolve["guard"]:
            fired.append(f"- T = {t1}, backsolve: {backsolve['guard']}")
    headers = ["T", "states", *METHODS, "backsolve (no states)", "error of the reference"]
    guards = "\n".join(fired) or "- none"
    return f"{_HORIZONS}\n\n{markdown.table(headers, rows)}\n\nGuards that fired:\n\n{guards}"


def input_section(results: Cells, settings: Settings, sizes: Sizes) -> str:
    """The table of real inputs."""
    known, missing = _inputs(settings)
    rows = [
        [case.name, n, *_entries([results[f"inputs {case.name} N={n} {m}"] for m in METHODS])]
        for case in known
        for n in sizes.input_states
    ]
    headers = ["input", "states", *METHODS, "error of the reference"]
    return f"{_INPUTS}\n\n{markdown.table(headers, rows)}\n\n{missing}"


def _entries(cells: list[dict[str, Any]]) -> list[str]:
    """Median errors, and that of the reference.

    One that a guard refuses is called unstable, its error in brackets.
    """
    entries: list[str] = []
    for cell in cells:
        error = median(cell["errors"])
        bare = f"{error:.0e}" if error == error else "not finite"  # noqa: PLR0124  (NaN)
        entries.append(f"unstable ({bare})" if cell["guard"] else markdown.scientific(error))
    return [*entries, markdown.scientific(cells[0]["reference_error"])]


_HORIZONS = """## Longer horizons

The same against the flow's gradient at longer horizons, median over the starts. *Unstable* cells
are those that odeopt refuses with its default `Safety`; in brackets the error that the gradient
would have had. *Backsolve* integrates state and adjoint back from T together (RK4, with the
steps of the reference) and keeps nothing."""

_INPUTS = f"""## Real inputs

Five-way, ten-shot digits (scikit-learn) with a tanh perceptron and a small convolutional net,
cross-entropy; and one user's ratings (MovieLens latest-small of October 2016, ten training and
fifteen validation ratings, network 100-40-40-1). T = {T1:g}, median of {SEEDS} seeds."""
