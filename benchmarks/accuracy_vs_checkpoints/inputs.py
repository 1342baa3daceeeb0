"""Real inputs: digits, and one user's ratings where the data is there."""

from __future__ import annotations

from functools import partial
from typing import Any

import odeopt
from benchmarks.accuracy_vs_checkpoints import cases
from benchmarks.accuracy_vs_checkpoints.batched import (
    References,
    flow_optimizer,
    guarded,
    start,
)
from benchmarks.accuracy_vs_checkpoints.horizons import METHODS, show
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness import markdown
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems.data_files import MissingDataError

T1 = 5.0
SEEDS = 2


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per input, number of states and method."""
    found: list[Cell] = []
    for case in _cases(settings)[0]:
        references = References(start(case, range(SEEDS), settings.device))
        for states in sizes.input_states:
            for method in METHODS:
                compute = partial(_compute, references, states, method)
                found.append(Cell(f"inputs {case.name} N={states} {method}", compute))
    return found


def _cases(settings: Settings) -> tuple[list[cases.Case], str]:
    """The cases, and why one is missing."""
    found = list(cases.digits_cases())
    try:
        if settings.data is None:
            return found, "No data folder was given (`--data`), so ratings are left out."
        return [*found, cases.ratings_case(settings.data)], ""
    except MissingDataError as error:
        return found, f"Ratings are left out: {error}"


def _compute(references: References, states: int, method: str) -> dict[str, Any]:
    backward, nodes = METHODS[method]
    target, own = references(T1)

    def make(safety: odeopt.Safety) -> odeopt.ODEOptimizer:
        return flow_optimizer(references.begin.case, backward, nodes(states), safety)

    fine = states if nodes is odeopt.Density else max(4 * states, 512)
    found = guarded(make, references.begin, odeopt.TimeGrid.uniform(T1, fine), target)
    return {**found, "reference_error": own}


def section(results: dict[str, dict[str, Any]], settings: Settings, sizes: Sizes) -> str:
    """The table as Markdown."""
    found, missing = _cases(settings)
    rows: list[list[Any]] = []
    for case in found:
        for states in sizes.input_states:
            own = [results[f"inputs {case.name} N={states} {method}"] for method in METHODS]
            reference = markdown.scientific(own[0]["reference_error"])
            rows.append([case.name, states, *(show(cell) for cell in own), reference])
    headers = ["input", "states", *METHODS, "error of the reference"]
    return f"{_INTRODUCTION}\n\n{markdown.table(headers, rows)}\n\n{missing}".rstrip()


_INTRODUCTION = f"""## Real inputs

Five-way, ten-shot digits (scikit-learn) with a tanh perceptron and a small convolutional net,
cross-entropy; and one user's ratings (MovieLens latest-small of October 2016, ten training and
fifteen validation ratings, network 100-40-40-1). T = {T1:g}, median of {SEEDS} seeds."""
