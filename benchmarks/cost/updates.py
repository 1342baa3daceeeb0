"""One meta-update of every method, measured in a process of its own on one thread.

In this order:

1. the warm-up, with one inner step, which loads libraries and compiles kernels;
2. the first run, under the memory limit, during which the growth of resident memory is read;
3. timed runs, as many as the time allows (the first run counts if it has taken too long);
4. one more run, not timed, during which allocations are recorded (`benchmarks.harness.costs`).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import odeopt
from benchmarks.comparison import cosine, of_order_four
from benchmarks.cost import resident
from benchmarks.cost.lines import LINES, LR, PROBLEM, Inputs, Line, inputs, make_update
from benchmarks.harness import costs, markdown, outline, plots, processes
from benchmarks.harness.costs import MIB, once
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems.tasks import move
from odeopt.tools import tree


@dataclass(frozen=True)
class Check:
    """The sizes of A-MAML against `higher`."""

    steps: int  # inner steps
    states: int  # states that A-MAML keeps
    compile: str | None  # how A-MAML's kernels are run
    reference_steps: int  # RK4 steps of the reference
    repeats: int  # timed runs of each


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    steps: tuple[int, ...]  # numbers of inner steps
    lines: tuple[str, ...] | None  # names of the lines that are measured, None for all
    tasks: int  # tasks of the meta-update
    shots: int  # training points of a task, and as many for validation
    repeats: int  # timed runs of a cell, fewer where they take long
    memory_gib: float  # memory that one meta-update may need
    seconds: float  # time that one cell may take
    check: Check  # the sizes of the comparison with `higher`
    state_mib: tuple[float, ...]  # sizes of states in the solves whose resident memory is looked at
    state_steps: int  # their steps


PAPER_LINES = (
    "a-maml", "a-maml compiled", "a-maml-50", "maml", "maml compiled", "maml-1", "fomaml",
    "reptile", "imaml-gd", "higher", "torchopt",
)  # fmt: skip

SIZES = {
    Preset.SMOKE: Sizes(
        (1, 4), ("higher",), 2, 5, 1, 16.0, 60.0, Check(8, 4, None, 16, 1), (1.0,), 12
    ),
    Preset.QUICK: Sizes(
        (10, 100), PAPER_LINES, 5, 100, 3, 16.0, 60.0, Check(100, 50, "inductor", 128, 3),
        (1.0, 16.0), 30,
    ),
    Preset.PAPER: Sizes(
        (1, 10, 20, 50, 100, 200, 500, 1000, 2000), None, 5, 100, 5, 16.0, 200.0,
        Check(500, 50, "inductor", 512, 5), (0.25, 1.0, 4.0, 16.0), 100,
    ),
}  # fmt: skip


WANTED = {"times_as_fast": 5.0, "share_of_memory": 0.1, "cosine": 0.999}


def measure(line: str, steps: int, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a line.

    Returns:
        outcome: "" where there are numbers, else why there are none; the numbers are seconds,
        runs, live_bytes, resident_bytes (None on CUDA), together and warm_up_seconds.
    """
    where = torch.device(device)

    def numbers() -> dict[str, Any]:
        own = inputs(sizes.tasks, sizes.shots, where)
        update = make_update(LINES[line], steps, own)
        begin = perf_counter()
        update.warm_up()
        warm_up = perf_counter() - begin
        gc.collect()
        peak = costs.ResidentPeak()
        with costs.at_most(int(sizes.memory_gib * costs.GIB), where):
            first = once(update.run, where)
            resident = peak.bytes() if where.type == "cpu" else None
            runs: list[float] = []
            while len(runs) < sizes.repeats and first + sum(runs) + first < sizes.seconds:
                runs.append(once(update.run, where))
        runs = runs or [first]
        return {
            "warm_up_seconds": warm_up,
            "together": update.together,
            "seconds": median(runs),
            "runs": len(runs),
            "resident_bytes": resident,
            "live_bytes": costs.peak_live_bytes(update.run, where),
        }

    return _guarded(numbers, sizes)


def compare(sizes: Sizes, device: str) -> dict[str, Any]:
    """A-MAML with few kept states against exact MAML by `higher`, both in one process and run.

    Returns:
        For "a-maml" and "higher": seconds, live_bytes, live_bytes_per_task and the cosine to the
        gradient of the flow; the reference's own error, and the fields of `WANTED`.
    """
    where, check = torch.device(device), sizes.check

    def numbers() -> dict[str, Any]:
        own = inputs(sizes.tasks, sizes.shots, where)
        entries = Line("", "", "a-maml", check.states, check.compile), Line("", "", "higher")
        updates = {line.method: make_update(line, check.steps, own) for line in entries}
        runs = {name: one.run for name, one in updates.items()}
        gradients = {name: run() for name, run in runs.items()}  # compiles, too
        seconds = costs.in_turn(runs, check.repeats, where)
        target, error = reference(own, check.steps * LR, check.reference_steps)
        cell: dict[str, Any] = {}
        for name, one in updates.items():
            live = costs.peak_live_bytes(one.run, where)
            cell[name] = {
                "seconds": median(seconds[name]),
                "live_bytes": live,
                "live_bytes_per_task": live / one.together,
                "cosine": cosine(gradients[name].double(), target),
            }
        ours, theirs = cell["a-maml"], cell["higher"]
        return {
            **cell,
            "reference_error": error,
            "times_as_fast": theirs["seconds"] / ours["seconds"],
            "share_of_memory": ours["live_bytes_per_task"] / theirs["live_bytes_per_task"],
            "share_of_whole_memory": ours["live_bytes"] / theirs["live_bytes"],
            "cosine": ours["cosine"],
        }

    return _guarded(numbers, sizes)


def _guarded(numbers: Callable[[], dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    try:
        return processes.guarded(numbers, sizes.memory_gib)
    except odeopt.OdeoptError as error:
        return {"outcome": type(error).__name__, "message": str(error)}


def reference(own: Inputs, t1: float, steps: int) -> tuple[Tensor, float]:
    """The flow's meta-gradient in float64 by RK4 and its exact adjoint, and its own error."""
    params, tasks = move(own, own.tasks.train.x.device, torch.float64)
    flow = odeopt.ODEOptimizer(odeopt.GradientFlow(PROBLEM.loss), odeopt.RK4())

    def gradient(count: int) -> Tensor:
        method = odeopt.InnerLoop(flow, PROBLEM.loss, odeopt.TimeGrid.uniform(t1, count))
        return tree.flat(method(params, (tasks.train, tasks.validation)).grads.params)

    return of_order_four(gradient, steps)


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
    names = LINES if sizes.lines is None else sizes.lines
    return tuple(line for name, line in LINES.items() if name in names)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per line and number of steps, and the comparison with `higher`.

    Larger ones are not tried where a smaller one took too long or did not fit.
    """
    device = str(settings.device)
    child = partial(processes.run, limit=START_UP + SLACK * sizes.seconds)
    chosen: list[Cell] = []
    for line in measured_lines(sizes):
        if not line.installed:
            continue
        smaller: dict[str, str] = {}
        for steps in counts(line, sizes):
            own = key(line, steps)
            compute = partial(child, measure, line.name, steps, sizes, device)
            chosen.append(Cell(own, compute, dict(smaller)))
            smaller[own] = f"{steps} steps"
    if LINES["higher"].installed:
        chosen.append(Cell(CHECK, partial(child, compare, sizes, device)))
    if settings.device.type == "cpu":
        chosen += resident.cells(sizes.state_mib, sizes.state_steps)
    return chosen


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


def growth(steps: list[float], sizes: list[float]) -> Growth | None:
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
        drawn = {line.label: _points(results, line, sizes, what) for line in lines}
        labels = plots.Labels(title, "inner steps", label)
        path = settings.store.directory / f"{what}.png"
        parts.append(plots.picture(path, label, labels, drawn, _slope(drawn, sizes)))
    return "\n\n".join([*filter(None, parts), _fits(results, lines, sizes)])


def _points(results: Cells, line: Line, sizes: Sizes, what: str) -> dict[float, float]:
    own = of_line(results, line, sizes)
    return {steps: cell[what] for steps, cell in own.items() if not cell["outcome"]}


def _slope(drawn: dict[str, dict[float, float]], sizes: Sizes) -> tuple[plots.Slope, ...]:
    """A line of slope 1 through the last point of the largest line."""
    ends = [list(points.items())[-1] for points in drawn.values() if points]
    last, top = max(ends, key=itemgetter(1), default=(0.0, 0.0))
    first = float(sizes.steps[0])
    if first >= last:
        return ()
    return (plots.Slope("slope 1", 1.0, (first, top * first / last), float(last)),)


def _fits(results: Cells, lines: tuple[Line, ...], sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = []
    words: list[str] = []
    for line in lines:
        if line.method not in UNROLLED:
            continue
        points = _points(results, line, sizes, "live_bytes")
        fit = growth(list(points), list(points.values()))
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
    columns: list[markdown.Column] = [
        ("seconds", "{seconds:.3g}"),
        ("live MiB", lambda one: f"{one['live_bytes'] / MIB:.2f}"),
        ("live KiB per task", lambda one: f"{one['live_bytes_per_task'] / 1024:.0f}"),
        ("cosine to the flow's gradient", "{cosine:.6f}"),
    ]
    table = markdown.described([""], columns, [([n], cell[n]) for n in ("a-maml", "higher")])
    own = markdown.scientific(cell["reference_error"])
    return (
        f"{title}\n\n{sentence}\n\n{table}\nBoth were timed in turn,"
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
