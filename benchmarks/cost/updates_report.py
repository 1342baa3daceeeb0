"""What one meta-update costs in memory and time: the cells, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.cost import resident, updates
from benchmarks.cost.updates import LR, SIZES, WANTED, Line, Sizes
from benchmarks.harness import markdown, outline, plots, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Settings

NAME = "cost --only updates"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

CHECK = "check"
START_UP = 60.0
"""Seconds that a process may take to start and to compile, besides the time of its cell."""

SLACK = 3.0
"""The first and the recorded run take time as well."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(settings, NAME, REVISION, sizes, cells(settings, sizes))
    results, lines = done.cells, measured_lines(sizes)
    lacking = [f"- {one.label}: the package is not installed" for one in lines if not one.installed]
    tables = dict(_TABLES)
    if settings.device.type != "cpu":
        del tables[_RESIDENT]
    sections = [
        _head(sizes),
        *(_table(title, show, results, lines, sizes) for title, show in tables.items()),
        growth_section(results, lines, sizes, settings),
        check_section(results.get(CHECK), sizes),
        resident.section(results),
        outline.without_numbers(results, lacking),
    ]
    outline.write(settings, "Memory and time of one meta-update", done, sections)


def measured_lines(sizes: Sizes) -> tuple[Line, ...]:
    """The lines of a run, those whose package is missing included."""
    names = sizes.lines
    return tuple(line for line in updates.lines() if names is None or line.name in names)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per line and number of steps, and the comparison with `higher`.

    Larger ones are not tried where a smaller one took too long or did not fit.
    """
    device = str(settings.device)
    limit = START_UP + SLACK * sizes.seconds
    chosen: list[Cell] = []
    for line in measured_lines(sizes):
        if not line.installed:
            continue
        smaller: dict[str, str] = {}
        for steps in counts(line, sizes):
            own = key(line, steps)
            compute = partial(run_child, updates.measure, line.name, steps, sizes, device)
            chosen.append(Cell(own, partial(compute, limit=limit), dict(smaller)))
            smaller[own] = f"{steps} steps"
    if next(line for line in updates.lines() if line.name == "higher").installed:
        compute = partial(run_child, updates.compare, sizes, device)
        chosen.append(Cell(CHECK, partial(compute, limit=limit)))
    if settings.device.type == "cpu":
        chosen += resident.cells(sizes.state_mib, sizes.state_steps)
    return chosen


def run_child(*call: Any, limit: float) -> dict[str, Any]:
    """What a function returns in a process of its own."""
    return processes.run(*call, limit=limit)


def counts(line: Line, sizes: Sizes) -> tuple[int, ...]:
    """The numbers of steps that are measured; one for a line that does not depend on them."""
    return sizes.steps if line.varies else sizes.steps[-1:]


def key(line: Line, steps: int) -> str:
    """The key of a cell."""
    return f"{line.name} steps={steps}" if line.varies else line.name


def of_line(results: Cells, line: Line, sizes: Sizes) -> dict[int, dict[str, Any]]:
    """The cells of a line by steps; empty where its package is missing."""
    if not line.installed:
        return {}
    return {steps: results[key(line, steps)] for steps in sizes.steps}


_RESIDENT = "Growth of resident memory, MiB"
_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "Seconds of one meta-update": lambda cell: f"{cell['seconds']:.3g}",
    "Peak of live tensors, MiB": lambda cell: f"{cell['live_bytes'] / MIB:.2f}",
    "Peak of live tensors per task that is in memory, KiB": (
        lambda cell: f"{cell['live_bytes'] / cell['together'] / 1024:.0f}"
    ),
    _RESIDENT: lambda cell: f"{cell['resident_bytes'] / MIB:.1f}",
}


def _table(
    title: str, show: Callable[[dict[str, Any]], str], results: Cells, lines: tuple[Line, ...],
    sizes: Sizes,
) -> str:  # fmt: skip
    rows: list[list[markdown.Entry]] = []
    for line in lines:
        own = of_line(results, line, sizes)
        shown = [cell["outcome"] or show(cell) for cell in own.values()]
        rows.append([line.label, *(shown or ["not installed"] * len(sizes.steps))])
    return f"## {title}\n\n{markdown.table(['inner steps', *map(str, sizes.steps)], rows)}"


UNROLLED = ("maml", "higher", "torchopt")
PUBLISHED_STEPS = 200
PUBLISHED_BYTES = 24e9
"""Fig. 3: MAML fills 24 GB at 200 steps."""


class Growth(NamedTuple):
    """How bytes grow with steps: a straight line through all points, and a power."""

    start: float  # bytes of the line at no steps
    per_step: float  # bytes of the line per step
    misfit: float  # the largest deviation from the line, relative to the bytes there
    power: float  # the exponent p of bytes - start ~ steps^p; 1 is linear


def growth(steps: list[int], sizes: list[float]) -> Growth | None:
    """The fits, None where there are fewer than two points; each point weighs the same."""
    if len(steps) < 2:
        return None
    x, y = np.asarray(steps, float), np.asarray(sizes, float)
    per_step, start = np.polyfit(x, y, 1, w=1 / y)
    misfit = float(np.max(np.abs(start + per_step * x - y) / y))
    above = y - start
    usable = above > 0
    power = math.nan
    if usable.sum() >= 2:
        power = float(np.polyfit(np.log(x[usable]), np.log(above[usable]), 1)[0])
    return Growth(float(start), float(per_step), misfit, power)


def growth_section(
    results: Cells, lines: tuple[Line, ...], sizes: Sizes, settings: Settings
) -> str:  # fmt: skip
    """The plots and the fits."""
    parts = ["## Growth with the number of steps"]
    title = f"One meta-update of {sizes.tasks} tasks, {sizes.shots} + {sizes.shots} points"
    for what, label in (("seconds", "seconds"), ("live_bytes", "bytes of live tensors")):
        points = {line.label: _points(results, line, sizes, what) for line in lines}
        series = [plots.Series(name, x, y) for name, (x, y) in points.items() if x]
        if series:
            path = settings.store.directory / f"{what}.png"
            labels = plots.Labels(title, "inner steps", label)
            plots.loglog(path, labels, series, _slope(series, sizes))
            parts.append(f"![{label}]({what}.png)")
    return "\n\n".join([*parts, _fits(results, lines, sizes)])


def _points(results: Cells, line: Line, sizes: Sizes, what: str) -> tuple[list[int], list[float]]:
    own = of_line(results, line, sizes)
    usable = {steps: cell[what] for steps, cell in own.items() if not cell["outcome"]}
    return list(usable), list(usable.values())


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


def check_section(cell: dict[str, Any] | None, sizes: Sizes) -> str:
    """The comparison in one process, as a sentence and a table."""
    title = "## A-MAML against exact MAML by higher, in one run"
    if cell is None:
        return f"{title}\n\nThe package higher is not installed."
    if cell.get("outcome"):
        return f"{title}\n\n{cell['outcome']}: {cell['message']}"
    size = sizes.check
    sentence = (
        f"A-MAML at {size.steps} steps for {sizes.tasks} tasks with `states={size.states}`"
        f" (compile={size.compile!r}) against higher's exact MAML in the same run:"
        f" {cell['times_as_fast']:.1f} times as fast (at least {WANTED['times_as_fast']:g} wanted),"
        f" {cell['share_of_memory']:.3f} of its memory per task (at most"
        f" {WANTED['share_of_memory']:g} wanted), cosine to the flow's gradient"
        f" {cell['cosine']:.6f} (at least {WANTED['cosine']:g} wanted)."
    )
    rows: list[list[markdown.Entry]] = [
        [name, f"{cell[name]['seconds']:.3g}", f"{cell[name]['live_bytes'] / MIB:.2f}",
         f"{cell[name]['live_bytes_per_task'] / 1024:.0f}", f"{cell[name]['cosine']:.6f}"]
        for name in ("a-maml", "higher")
    ]  # fmt: skip
    headers = ["", "seconds", "live MiB", "live KiB per task", "cosine to the flow's gradient"]
    own = markdown.scientific(cell["reference_error"])
    return (
        f"{title}\n\n{sentence}\n\n{markdown.table(headers, rows)}\nBoth were timed in turn,"
        f" medians of {size.repeats}; all {sizes.tasks} tasks of A-MAML are in memory together,"
        f" those of higher one after the other, so that A-MAML's whole peak is"
        f" {cell['share_of_whole_memory']:.3f} of higher's. The flow's gradient is that of RK4 with"
        f" {size.reference_steps} steps in float64; its own error is {own}."
    )


def _head(sizes: Sizes) -> str:
    return f"""The meta-gradient of {sizes.tasks} CosMixture tasks ({sizes.shots} + {sizes.shots}
points, protocol "code"), network 2-32-32-1, float32, learning rate {LR:g}, one thread (paper:
Figs. 3 and 4). Every cell is a process of its own. After a warm-up with one inner step, which
also compiles where a line is compiled, there are three kinds of runs: one in which the growth of
resident memory is read, with at most {sizes.memory_gib:g} GiB to be had ("did not fit" where
that is not enough); up to {sizes.repeats} timed ones, of which the median is given; and one in
which every allocation is recorded. Live tensors are counted above those before the run. odeopt
has all tasks of the update in memory together; higher and TorchOpt one after the other, as their
users write it, and per task means the tasks that are in memory. Resident memory is that of the
whole process and includes what the allocators keep. MAML-1 and iMAML-HF do not depend on the
number of steps and are measured once; A-MAML keeps as many states as there are steps, unless the
line says 50."""
