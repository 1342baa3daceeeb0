"""Plots against the number of steps, and how MAML's memory grows with it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from benchmarks.cost.updates import measure
from benchmarks.cost.updates.cases import Line
from benchmarks.cost.updates.measure import Cells
from benchmarks.cost.updates.sizes import Sizes
from benchmarks.harness import markdown, plots
from benchmarks.harness.registry import Settings

STYLES = ("-", "--", ":")
UNROLLED = ("maml", "higher", "torchopt")
PUBLISHED_STEPS = 200
PUBLISHED_BYTES = 24e9
"""Fig. 3: MAML fills 24 GB at 200 steps."""


class Growth(NamedTuple):
    """How bytes grow with steps: a straight line through all points, and a power.

    Attributes:
        start: Bytes of the line at no steps.
        per_step: Bytes of the line per step.
        misfit: The largest deviation from the line, relative to the bytes there.
        power: The exponent p of bytes - start ~ steps^p; 1 is linear.
    """

    start: float
    per_step: float
    misfit: float
    power: float


def growth(steps: list[int], found: list[float]) -> Growth | None:
    """The fits, None where there are fewer than two points; each point weighs the same."""
    if len(steps) < 2:
        return None
    x, y = np.asarray(steps, float), np.asarray(found, float)
    per_step, start = np.polyfit(x, y, 1, w=1 / y)
    misfit = float(np.max(np.abs(start + per_step * x - y) / y))
    above = y - start
    usable = above > 0
    power = math.nan
    if usable.sum() >= 2:
        power = float(np.polyfit(np.log(x[usable]), np.log(above[usable]), 1)[0])
    return Growth(float(start), float(per_step), misfit, power)


def section(results: Cells, lines: tuple[Line, ...], sizes: Sizes, settings: Settings) -> str:
    """The plots and the fits as Markdown."""
    labels = {"seconds": "seconds", "live_bytes": "bytes of live tensors"}
    parts = ["## Growth with the number of steps"]
    for what, label in labels.items():
        if _plot(what, label, results, lines, sizes, settings):
            parts.append(f"![{label}]({what}.png)")
    return "\n\n".join([*parts, _fits(results, lines, sizes)])


def _points(results: Cells, line: Line, sizes: Sizes, what: str) -> tuple[list[int], list[float]]:
    cells = measure.of_line(results, line, sizes)
    usable = {steps: cell[what] for steps, cell in cells.items() if not cell["outcome"]}
    return list(usable), list(usable.values())


def _plot(
    what: str,
    label: str,
    results: Cells,
    lines: tuple[Line, ...],
    sizes: Sizes,
    settings: Settings,
) -> bool:
    """Draw what there is; False where there is nothing."""
    series: list[plots.Series] = []
    for index, line in enumerate(lines):
        x, y = _points(results, line, sizes, what)
        if x:
            style = STYLES[index // len(plots.PALETTE) % len(STYLES)]
            series.append(plots.Series(line.label, x, y, style))
    if series:
        title = f"One meta-update of {sizes.tasks} tasks, {sizes.shots} + {sizes.shots} points"
        path = settings.store.directory / f"{what}.png"
        labels = plots.Labels(title, "inner steps", label)
        plots.loglog(path, labels, series, _slope(series, sizes))
    return bool(series)


def _slope(series: list[plots.Series], sizes: Sizes) -> tuple[plots.Slope, ...]:
    """A line of slope 1 through the last point of the largest series."""
    top = max(series, key=lambda one: one.y[-1])
    first, last = sizes.steps[0], top.x[-1]
    if first >= last:
        return ()
    begin = (float(first), top.y[-1] * first / last)
    return (plots.Slope("slope 1", 1.0, begin, float(last)),)


def _fits(results: Cells, lines: tuple[Line, ...], sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = []
    words: list[str] = []
    for line in lines:
        if line.method not in UNROLLED:
            continue
        fit = growth(*_points(results, line, sizes, "live_bytes"))
        if fit is None:
            rows.append([line.label, "too few points", "", "", ""])
            continue
        rows.append([line.label, f"{fit.start:.0f}", f"{fit.per_step:.0f}",
                     f"{100 * fit.misfit:.1f} %", f"{fit.power:.3f}"])  # fmt: skip
        words.append(_against_paper(line, fit))
    headers = ["exact MAML", "bytes at 0 steps", "bytes per step", "worst misfit", "power"]
    return "\n\n".join([_FITS, markdown.table(headers, rows).rstrip(), *words])


def _against_paper(line: Line, fit: Growth) -> str:
    there = fit.start + PUBLISHED_STEPS * fit.per_step
    times = PUBLISHED_BYTES / there
    return (
        f"{line.label} needs {there / 1e6:.1f} MB at {PUBLISHED_STEPS} steps by that line; the"
        f" paper's {PUBLISHED_BYTES / 1e9:.0f} GB are {times:.0f} times as much."
    )


_FITS = """The live memory of exact MAML is fitted by a straight line through all points, each
weighted by its own size, and by a power of the steps above that line's start. The paper calls
MAML's growth exponential: its axis is categorical (1, 10, 20, 50, ... at even distances), on which
a straight line looks like that. The power tells: 1 is linear."""
