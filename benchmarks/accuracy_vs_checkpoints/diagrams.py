"""The work-precision results as plots and tables."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, NamedTuple

from benchmarks.accuracy_vs_checkpoints.precision import DESCENT, T1, configurations, inputs
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness import markdown, plots
from benchmarks.harness.registry import Settings

Results = dict[str, dict[str, Any]]

TARGETS = {
    "descent": f"(A) the gradient of {DESCENT} steps of gradient descent",
    "flow": "(B) the gradient of the flow",
}
METRICS = {"error": "relative L2 error", "cosine": "1 - cosine"}
AXES = {
    "stored_bytes": "kept states, bytes",
    "work": "gradient evaluations + Hessian-vector products",
    "gradient_units": "time, in gradient evaluations",
}


def section(results: Results, settings: Settings, sizes: Sizes) -> str:
    """Plots and tables for each problem and target."""
    parts = [_INTRODUCTION]
    for case in inputs(settings.preset):
        found = _of_case(results, case.name, sizes)
        for target, words in TARGETS.items():
            parts.append(f"### {case.name}: {words}")
            for (axis, label), metric in product(AXES.items(), METRICS):
                diagram = Diagram(case.name, target, axis, metric)
                _plot(found, settings, diagram)
                parts.append(f"![{METRICS[metric]} against {label}]({diagram.file})")
        parts.append(_table(found))
    return "\n\n".join(parts)


class Diagram(NamedTuple):
    """What one diagram shows."""

    case: str
    target: str
    axis: str
    metric: str

    @property
    def file(self) -> str:
        """Its file name."""
        return "-".join(["precision", *(_slug(part) for part in self)]) + ".png"

    def value(self, cell: dict[str, Any]) -> float:
        """The ordinate of a cell."""
        found = cell[f"{self.metric} {self.target}"]
        return 1 - found if self.metric == "cosine" else found


def _of_case(results: Results, case: str, sizes: Sizes) -> list[dict[str, Any]]:
    families = [one.family for one in configurations(sizes)]
    cells = [results[f"precision {case} {i} {family}"] for i, family in enumerate(families)]
    return [
        {**cell, "work": cell.get("gradient_evaluations", 0) + cell.get("hvps", 0)}
        for cell in cells
    ]


def _plot(cells: list[dict[str, Any]], settings: Settings, diagram: Diagram) -> None:
    families = dict.fromkeys(cell["family"] for cell in cells)
    lines: list[plots.Series] = []
    for index, family in enumerate(families):
        own = [cell for cell in cells if cell["family"] == family and not cell["guard"]]
        x = [max(float(cell[diagram.axis]), 1.0) for cell in own]
        y = [diagram.value(cell) for cell in own]
        lines.append(plots.Series(family, x, y, "-" if index < len(plots.PALETTE) else "--"))
    title = f"{diagram.case}, T = {T1:g}: {TARGETS[diagram.target]}"
    labels = plots.Labels(title, AXES[diagram.axis], METRICS[diagram.metric])
    plots.loglog(settings.store.directory / diagram.file, labels, lines)


def _table(cells: list[dict[str, Any]]) -> str:
    rows = [_row(cell) for cell in cells]
    headers = [
        "configuration", "error A", "cosine A", "error B", "cosine B", "states", "bytes",
        "gradients", "HVPs", "seconds", "in gradients",
    ]  # fmt: skip
    return markdown.table(headers, rows)


def _row(cell: dict[str, Any]) -> list[Any]:
    if cell["guard"]:
        return [cell["family"], "unstable", *[""] * 9]
    return [
        cell["family"],
        *(
            value
            for target in TARGETS
            for value in (float(cell[f"error {target}"]), f"{cell[f'cosine {target}']:.6f}")
        ),
        cell["stored_states"],
        cell["stored_bytes"],
        cell["gradient_evaluations"],
        cell["hvps"],
        f"{cell['seconds']:.2f}",
        f"{cell['gradient_units']:.0f}",
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


_INTRODUCTION = f"""## Work and precision

One task, T = {T1:g}, float64. Two targets that must not be mixed: (A) the gradient of the discrete
map, {DESCENT} steps of gradient descent with learning rate {T1 / DESCENT:g}, and (B) the gradient
of the flow that gradient descent approximates. Exact adjoints of gradient descent have no error
to A whatever they keep; they are as far from B as gradient descent itself is from the flow.
Time is the median of the repeats, also in units of one gradient evaluation measured in between;
the counts of gradients and Hessian-vector products do not depend on the machine."""
