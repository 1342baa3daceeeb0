"""The cells and the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import markdown, outline, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.markdown import Column
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.plots import Labels, Series, loglog, picture
from benchmarks.harness.registry import Settings
from benchmarks.peers import criteria, measure, problems
from benchmarks.peers.contenders import CONTENDERS, EAGER, KERNELS, OURS, SIZES, Point, Sizes


def _spread(cell: dict[str, Any]) -> str:
    """The least and the greatest, where there are several."""
    seconds = cell["seconds"]
    return f"{min(seconds):.3g} to {max(seconds):.3g}" if len(seconds) > 1 else "one run"


def _work(cell: dict[str, Any]) -> str:
    return f"{cell['gradient_evaluations']} + {cell['hvps']}" if "hvps" in cell else ""


SECONDS: Column = ("seconds", lambda cell: f"{median(cell['seconds']):.3g}")
SPREAD: Column = ("least to greatest", _spread)
ERROR: Column = ("error to B", lambda cell: cell["errors"]["B"])
WORK: Column = ("gradients + HVPs", _work)


def claims(cells: Cells) -> str:
    """The claims with their numbers."""
    rows: list[list[markdown.Entry]] = [
        [one.claim, one.verdict, one.numbers or "-"] for one in criteria.evaluate(cells)
    ]
    return (
        f"## What is claimed\n\n{markdown.table(['claim', 'verdict', 'measured'], rows)}".rstrip()
    )


def peers_ahead(cells: Cells, points: tuple[Point, ...]) -> str:
    """Where a peer is ahead."""
    lines = [
        f"- {point.key}: {text}"
        for point in points
        for text in criteria.ahead(cells[point.key]["contenders"])
    ]
    return "## Where others are ahead\n\n" + ("\n".join(lines) or "- nowhere")


def points(cells: Cells, sizes: Sizes) -> str:
    """One table per point."""
    parts = ["## Every point"]
    for point in sizes.points:
        problem = problems.make(point.problem, 1)
        cell = cells[point.key]
        own = cell["reference_error"]
        shown = "not there" if own is None else markdown.scientific(own)
        parts += [
            f"### {point.key}",
            f"{problem.title}, learning rate {problem.lr:g}. Relative error of the reference of"
            f" target B: {shown}.",
            _table(cell["contenders"]).rstrip(),
        ]
    return "\n\n".join(parts)


def _table(cells: dict[str, dict[str, Any]]) -> str:
    own = {name: cells[name] for name in CONTENDERS if name in cells}
    base = next(
        (own[name] for name in (OURS, EAGER) if not own.get(name, {"outcome": "-"})["outcome"]),
        None,
    )

    def times(cell: dict[str, Any]) -> str:
        return f"{criteria.times(cell['seconds'], base['seconds']):.2f}" if base else ""

    def share(cell: dict[str, Any]) -> str:
        return f"{cell['live_bytes'] / base['live_bytes']:.2f}" if base else ""

    def resident(cell: dict[str, Any]) -> str:
        size = cell["resident_bytes"]
        return "" if size is None else f"{size / MIB:.1f}"

    columns: list[Column] = [
        SECONDS, SPREAD, ("over odeopt", times),
        ("peak MiB", lambda cell: f"{cell['live_bytes'] / MIB:.2f}"), ("over odeopt", share),
        ("resident MiB", resident), ("error to A", lambda cell: cell["errors"]["A"]), ERROR, WORK,
        ("kept", lambda cell: cell.get("stored_states", "")), ("start, s", "{prepare_seconds:.1f}"),
    ]  # fmt: skip
    rows = [
        ([CONTENDERS[name].label, CONTENDERS[name].target], cell["outcome"] or cell)
        for name, cell in own.items()
    ]
    return markdown.described(["", "target"], columns, rows)


def overhead(cells: Cells, sizes: Sizes) -> str:
    """A solve against the bare kernels."""
    rows: list[tuple[list[str], dict[str, Any] | str]] = []
    for steps in sizes.overhead:
        cell = cells[f"overhead steps={steps}"]
        by_name = {entry["contender"]: entry for entry in cell.get("entries", [])}
        rows.append(([str(steps)], cell["outcome"] or by_name))

    columns: list[Column] = []
    for name, label in ((OURS, "odeopt"), (KERNELS, "bare kernels")):
        columns += [
            (f"{label}, s", lambda cell, name=name: f"{median(cell[name]['seconds']):.4g}"),
            (SPREAD[0], lambda cell, name=name: _spread(cell[name])),
        ]
    columns += [
        ("median of the ratio", lambda cell: f"{criteria.ratio(cell.values(), OURS, KERNELS):.3f}"),
        ("error of the bare kernels to A", lambda cell: cell[KERNELS]["errors"]["A"]),
    ]
    return f"{_OVERHEAD}\n\n{markdown.described(['steps'], columns, rows)}"


def precision(cell: dict[str, Any], settings: Settings) -> str:
    """Errors to the flow against seconds, in one process: the plot and the table."""
    known = [entry for entry in cell.get("entries", []) if not entry["outcome"]]
    series: list[Series] = []
    for name in dict.fromkeys(entry["contender"] for entry in known):
        own = [entry for entry in known if entry["contender"] == name]
        seconds = [median(entry["seconds"]) for entry in own]
        series.append(Series(CONTENDERS[name].label, seconds, [e["errors"]["B"] for e in own]))
    labels = Labels("the flow's gradient at T = 5, five tasks", "seconds", "relative error to B")
    loglog(settings.store.directory / "precision.png", labels, series)
    if cell["outcome"]:
        return f"{_PRECISION}\n\n{cell['outcome']}: {cell['message']}"
    rows: list[tuple[list[str], dict[str, Any] | str]] = []
    for entry in cell["entries"]:
        one = CONTENDERS[entry["contender"]]
        setting = f"{one.setting} = {entry['setting']:g}"
        rows.append(([one.label, setting], entry["outcome"] or entry))
    columns = [SECONDS, SPREAD, ERROR, WORK]
    own = markdown.scientific(cell["reference_error"])
    table = markdown.described(["", "setting"], columns, rows)
    return f"{_PRECISION} The reference's own error is {own}.\n\n{table}"


def long_horizons(cells: Cells, sizes: Sizes) -> str:
    """The stabilised solver over long horizons."""
    parts = [_STIFF]
    for run in sizes.stiff:
        cell = cells[f"stiff T={run.t1:g}"]
        if cell["outcome"]:
            parts.append(f"T = {run.t1:g}: {cell['outcome']} ({cell['message']})")
            continue
        entries = [("gradient descent", cell["descent"])]
        entries += [(f"StabilizedRK, rtol = {e['rtol']:g}", e) for e in cell["stabilised"]]
        rows = [([label], entry["failure"] or entry) for label, entry in entries]
        own = markdown.scientific(cell["reference_error"])
        parts.append(
            rf"T = {run.t1:g}, $\rho$ = {cell['radius']:.1f}, $\rho T$ = {cell['stiffness']:.3g};"
            f" the reference's own error is {own}.\n\n{markdown.described([''], _LONG, rows)}"
        )
    return "\n\n".join(parts)


_LONG: list[Column] = [
    ("error to B", itemgetter("error")), ("gradients and HVPs", "{evaluations}"),
    ("kept states", "{stored_states}"), ("seconds", "{seconds:.3g}"),
]  # fmt: skip


def missing(cells: Cells) -> str:
    """What has no numbers, and why."""
    parts: Cells = {}
    for key, cell in cells.items():
        parts[key] = cell
        parts |= {f"{key}, {name}": one for name, one in cell.get("contenders", {}).items()}
        for one in cell.get("entries", []):
            parts[f"{key}, {one['contender']} {one['setting']}"] = one
    return outline.without_numbers(parts, title="Without numbers")


_OVERHEAD = """## odeopt and its bare kernels

The step and its transpose, written by hand, traced and compiled as odeopt does it, called in a
Python loop as often as odeopt calls its own, on the states of gradient descent: no checks, no
statistics, no gradient of the validation loss (computed before). Perceptron, five tasks, float32,
both in one process in turn."""

_PRECISION = """## Work and precision at T = 5

Perceptron, five tasks, float32, error to the gradient of the flow; all in one process, in turn.
Gradient descent with N steps has the learning rate T / N.

![work and precision](precision.png)"""

_STIFF = r"""## Long horizons

One CosMixture task (the text's, seed 1), float64, errors to the gradient of the flow; $\rho$ is the
largest eigenvalue of the Hessian that was found on the way. Gradient descent makes 2 % more than
$\rho T / 2$ steps, the fewest that are stable, and keeps all states."""


def all_plots(cells: Cells, sizes: Sizes, settings: Settings) -> str:
    """Seconds and memory against steps and tasks, wherever a problem has several points."""
    parts: list[str] = []
    for name in dict.fromkeys(point.problem for point in sizes.points):
        own = [p for p in sizes.points if p.problem == name and p.dtype == "float32"]
        for varied, fixed in (("steps", "tasks"), ("tasks", "steps")):
            line = _longest(own, varied, fixed)
            if len(line) > 1:
                parts += _plots(cells, settings, name, line, varied, fixed)
    return "\n".join(["## Plots\n", *parts]) if parts else ""


def _longest(points: list[Point], varied: str, fixed: str) -> list[Point]:
    """The points that differ in one thing only, as many as there are."""
    groups: dict[int, list[Point]] = {}
    for point in points:
        groups.setdefault(getattr(point, fixed), []).append(point)
    line = max(groups.values(), key=len, default=[])
    return sorted(line, key=lambda point: getattr(point, varied))


def _plots(
    cells: Cells, settings: Settings, problem: str, line: list[Point], varied: str, fixed: str
) -> list[str]:
    title = f"{problem}, {getattr(line[0], fixed)} {fixed}"
    parts: list[str] = []
    for what, label in (("seconds", "seconds"), ("live_bytes", "peak bytes of live tensors")):
        path = settings.store.directory / f"{problem}-{what}-{varied}.png"
        alt, labels = f"{problem}: {label} against {varied}", Labels(title, varied, label)
        drawn = {one.label: _points(cells, line, name, varied, what)
                 for name, one in CONTENDERS.items()}  # fmt: skip
        parts.append(picture(path, alt, labels, drawn))
    return [part for part in parts if part]


def _points(
    cells: Cells, line: list[Point], name: str, varied: str, what: str
) -> dict[float, float]:
    """What a contender needs at each point."""
    known: dict[float, float] = {}
    for point in line:
        cell = cells[point.key]["contenders"].get(name, {"outcome": "-"})
        if not cell["outcome"]:
            value = median(cell[what]) if what == "seconds" else float(cell[what])
            known[float(getattr(point, varied))] = value
    return known


NAME = "peers"
REVISION = 2
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

PATIENCE = 20.0
"""How many times as long as one answer a process with several contenders may take."""

TASKS = 5


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    with TemporaryDirectory() as cache:
        chosen = cells(settings, sizes, cache)
        done = outline.compute(settings, NAME, REVISION, sizes, chosen)
    sections = [
        _head(sizes),
        claims(done.cells),
        peers_ahead(done.cells, sizes.points),
        all_plots(done.cells, sizes, settings),
        overhead(done.cells, sizes) if sizes.overhead else "",
        precision(done.cells["precision"], settings) if sizes.precision else "",
        long_horizons(done.cells, sizes) if sizes.stiff else "",
        points(done.cells, sizes),
        missing(done.cells),
    ]
    outline.write(settings, "The same meta-gradient by others", done, sections)


def cells(settings: Settings, sizes: Sizes, cache: str) -> list[Cell]:
    """One per point, and those that are measured in one process.

    The cache is the folder of compiled kernels, shared by all processes of the run.
    """
    device = str(settings.device)
    alone = partial(
        processes.run, limit=PATIENCE * sizes.limits.start, variables={measure.CACHE: cache}
    )

    def together(entries: Sequence[tuple[str, float | None]], steps: int) -> Any:
        point = Point("mlp", steps, TASKS)
        return partial(alone, measure.measure_together, entries, point, device, sizes.paired_rounds)

    chosen = [
        Cell(point.key, partial(measure.compute, point, sizes.limits, device, cache))
        for point in sizes.points
    ]
    bare = (OURS, None), (KERNELS, None)
    chosen += [Cell(f"overhead steps={n}", together(bare, n)) for n in sizes.overhead]
    if sizes.precision:
        chosen.append(Cell("precision", together(sizes.precision, sizes.precision_steps)))
    for run in sizes.stiff:
        compute = partial(alone, measure.measure_long, run.t1, run.tolerances, device)
        chosen.append(Cell(f"stiff T={run.t1:g}", compute))
    return chosen


def _head(sizes: Sizes) -> str:
    limits = sizes.limits
    return f"""The gradient of the mean validation loss of several tasks w.r.t. the initialisation
that their inner optimisations share. Target A is the gradient of N steps of gradient descent,
target B that of the flow at the same horizon; errors are relative, to references in float64: a
hand-written adjoint loop for A, RK4 with its exact adjoint for B. Every contender stands for one of
them; "error to A" of one that stands for B says how far apart the two are, and the other way
round.

Every contender of a point is a process of its own, on one thread. Each first starts ("start":
building, compiling and a run with one step; kernels that another contender of this run has
compiled before are found in the compiler's cache) and makes one run, during which the growth of
resident memory is read. Then all are asked in turn for one timed run, in {limits.rounds} rounds;
given are the median, the least and the greatest, and as ratios the medians of those within a round.
One whose runs would take more than about {limits.seconds:g} seconds together makes fewer. Peaks are
those of live tensors above those before the call, recorded in a run of its own. A process may take
{limits.memory_gib:g} GiB beyond what it has after its start, and {limits.start:g} seconds for an
answer.

odeopt, the vmapped loops, torchdiffeq and the bare kernels have all tasks in memory together;
higher, TorchOpt and unrolled autograd one after the other, as their users write it. `Binomial`
keeps 2 sqrt(N) states, `Density` intervals of sqrt(N) steps."""
