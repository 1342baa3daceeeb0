"""The cells and the report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import markdown, outline, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Settings
from benchmarks.peers import criteria, measure, problems, stiff
from benchmarks.peers.contenders import CONTENDERS, EAGER, KERNELS, OURS
from benchmarks.peers.measure import Aim, spread
from benchmarks.peers.sizes import SIZES, Point, Sizes


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
    rows = [
        [CONTENDERS[name].label, CONTENDERS[name].target, *_row(cell, base)]
        for name, cell in own.items()
    ]
    headers = [
        "", "target", "seconds", "least to greatest", "over odeopt", "peak MiB", "over odeopt",
        "resident MiB", "error to A", "error to B", "gradients + HVPs", "kept", "start, s",
    ]  # fmt: skip
    return markdown.table(headers, rows)


def _row(cell: dict[str, Any], base: dict[str, Any] | None) -> list[markdown.Entry]:
    if cell["outcome"]:
        return [cell["outcome"], *[""] * 10]
    seconds, size, resident = cell["seconds"], cell["live_bytes"], cell["resident_bytes"]
    return [
        f"{median(seconds):.3g}", spread(seconds),
        f"{criteria.times(seconds, base['seconds']):.2f}" if base else "",
        f"{size / MIB:.2f}", f"{size / base['live_bytes']:.2f}" if base else "",
        "" if resident is None else f"{resident / MIB:.1f}",
        cell["errors"]["A"], cell["errors"]["B"], _work(cell), cell.get("stored_states", ""),
        f"{cell['prepare_seconds']:.1f}",
    ]  # fmt: skip


def overhead(cells: Cells, sizes: Sizes) -> str:
    """A solve against the bare kernels."""
    rows: list[list[markdown.Entry]] = []
    for steps in sizes.overhead:
        cell = cells[f"overhead steps={steps}"]
        if cell["outcome"]:
            rows.append([str(steps), cell["outcome"], *[""] * 5])
            continue
        by_name = {entry["contender"]: entry for entry in cell["entries"]}
        ours, bare = by_name[OURS], by_name[KERNELS]
        rows.append([
            str(steps), f"{median(ours['seconds']):.4g}", spread(ours["seconds"]),
            f"{median(bare['seconds']):.4g}", spread(bare["seconds"]),
            f"{criteria.ratio(cell['entries'], OURS, KERNELS):.3f}", bare["errors"]["A"],
        ])  # fmt: skip
    headers = [
        "steps", "odeopt, s", "least to greatest", "bare kernels, s", "least to greatest",
        "median of the ratio", "error of the bare kernels to A",
    ]  # fmt: skip
    return f"{_OVERHEAD}\n\n{markdown.table(headers, rows)}"


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
    rows: list[list[markdown.Entry]] = []
    for entry in cell["entries"]:
        one = CONTENDERS[entry["contender"]]
        rows.append([one.label, f"{one.setting} = {entry['setting']:g}"])
        if entry["outcome"]:
            rows[-1] += [entry["outcome"], "", "", ""]
            continue
        seconds = entry["seconds"]
        rows[-1] += [f"{median(seconds):.3g}", spread(seconds), entry["errors"]["B"], _work(entry)]
    headers = ["", "setting", "seconds", "least to greatest", "error to B", "gradients + HVPs"]
    own = markdown.scientific(cell["reference_error"])
    table = markdown.table(headers, rows)
    return f"{_PRECISION} The reference's own error is {own}.\n\n{table}"


def _work(entry: dict[str, Any]) -> str:
    return f"{entry['gradient_evaluations']} + {entry['hvps']}" if "hvps" in entry else ""


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
        headers = ["", "error to B", "gradients and HVPs", "kept states", "seconds"]
        rows: list[list[markdown.Entry]] = [[label, *_stiff_row(e)] for label, e in entries]
        own = markdown.scientific(cell["reference_error"])
        parts.append(
            rf"T = {run.t1:g}, $\rho$ = {cell['radius']:.1f}, $\rho T$ = {cell['stiffness']:.3g};"
            f" the reference's own error is {own}.\n\n{markdown.table(headers, rows)}"
        )
    return "\n\n".join(parts)


def _stiff_row(entry: dict[str, Any]) -> list[markdown.Entry]:
    if entry["failure"]:
        return [entry["failure"], "", "", ""]
    return [
        entry["error"], entry["evaluations"], entry["stored_states"], f"{entry['seconds']:.3g}"
    ]  # fmt: skip


def missing(cells: Cells) -> str:
    """What has no numbers, and why."""
    lines: list[str] = []
    for key, cell in cells.items():
        parts: list[tuple[str, dict[str, Any]]] = [(key, cell)]
        parts += [(f"{key}, {name}", one) for name, one in cell.get("contenders", {}).items()]
        parts += [
            (f"{key}, {one['contender']} {one['setting']}", one) for one in cell.get("entries", [])
        ]
        lines += [
            f"- {name}: {one['outcome']} ({one['message']})"
            for name, one in parts
            if one.get("outcome")
        ]
    return "## Without numbers\n\n" + ("\n".join(lines) or "- none")


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
    parts: list[str] = []
    for what, label in (("seconds", "seconds"), ("live_bytes", "peak bytes of live tensors")):
        series = _series(cells, line, varied, what)
        if series:
            name = f"{problem}-{what}-{varied}.png"
            title = f"{problem}, {getattr(line[0], fixed)} {fixed}"
            path = settings.store.directory / name
            loglog(path, Labels(title, varied, label), series)
            parts.append(f"![{problem}: {label} against {varied}]({name})")
    return parts


def _series(cells: Cells, line: list[Point], varied: str, what: str) -> list[Series]:
    series: list[Series] = []
    for name, contender in CONTENDERS.items():
        known: dict[float, float] = {}
        for point in line:
            cell = cells[point.key]["contenders"].get(name, {"outcome": "-"})
            if not cell["outcome"]:
                value = median(cell[what]) if what == "seconds" else float(cell[what])
                known[float(getattr(point, varied))] = value
        if known:
            series.append(Series(contender.label, list(known), list(known.values())))
    return series


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
        aim = Aim("mlp", TASKS, steps, device)
        return partial(
            alone, measure.measure_together, entries, aim, "float32", sizes.paired_rounds
        )  # fmt: skip

    chosen = [
        Cell(point.key, partial(measure.compute, point, sizes.limits, device, cache))
        for point in sizes.points
    ]
    bare = (OURS, None), (KERNELS, None)
    chosen += [Cell(f"overhead steps={n}", together(bare, n)) for n in sizes.overhead]
    if sizes.precision:
        chosen.append(Cell("precision", together(sizes.precision, sizes.precision_steps)))
    for run in sizes.stiff:
        compute = partial(alone, stiff.measure, run.t1, run.tolerances, device)
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
