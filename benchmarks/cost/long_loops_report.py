"""The cells, each a child process, and the report."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.cost import long_loops
from benchmarks.cost.long_loops import LABELS, OURS, SIZES, Point, Sizes
from benchmarks.harness import markdown, outline, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.outline import Cell, Run
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Settings

NAME = "cost --only long-loops"
REVISION = 3
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

START_UP, SLACK = 60.0, 30.0
"""Seconds to start, and how many times as long as timed runs all runs of a cell may take."""

ITSELF = "kernels"
"""The cell in which a solve is compared with its own kernels."""

MARGIN = 1.3
"""How many times as long as its kernels a solve may take."""
LINES = {"longer": "steps", "larger": "parameters"}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(settings, NAME, REVISION, sizes, cells(settings, sizes))
    sections = [_head(sizes)]
    for name, varied in LINES.items():
        points = getattr(sizes, name)
        sections += [_table(done, points, varied), _plot(settings, done, points, varied)]
    lacking = [
        f"- {label}: not installed"
        for line, label in LABELS.items()
        if not long_loops.installed(line)
    ]
    sections += [_itself(done, sizes), outline.without_numbers(done.cells, lacking)]
    outline.write(settings, "A meta-gradient in plain trainings", done, sections)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per package and point; a point of both lines is measured once."""
    device = str(settings.device)
    measure = partial(processes.run, limit=START_UP + SLACK * sizes.seconds)
    chosen: dict[str, Cell] = {}
    for line in filter(long_loops.installed, LABELS):
        for points in (sizes.longer, sizes.larger):
            smaller: dict[str, str] = {}
            for point in points:
                own = key(line, point)
                compute = partial(measure, long_loops.measure, line, point, sizes, device)
                chosen.setdefault(own, Cell(own, compute, smaller))
                smaller = {own: own}
    alone = partial(measure, long_loops.measure_kernels, sizes, device)
    return [*chosen.values(), Cell(key(ITSELF, sizes.itself), alone)]


def key(line: str, point: Point) -> str:
    """The key of a cell."""
    return f"{line} parameters={point.parameters} steps={point.steps} slots={point.slots}"


def _itself(run: Run, sizes: Sizes) -> str:
    cell, point = run.cells[key(ITSELF, sizes.itself)], sizes.itself
    head = f"## A solve against its own kernels: {point.steps:,} steps of Adam, {point.slots} slots"
    if cell["outcome"]:
        return f"{head}\n\n{cell['outcome']}"
    met = "met" if cell["ratio"] <= MARGIN and cell["advances"] == cell["bound"] else "not met"
    return f"""{head}

The gradient w.r.t. the initialisation and all learning rates made {cell["advances"]:,} steps, the
first sweep included, in {cell["seconds"]:.1f} s. The least is {cell["bound"]:,}: Revolve's number,
{cell["bound"] - 1:,}, and the last step of the first sweep, which Revolve leaves to the reversal,
but whose end the outer loss needs. A loop that only calls the same kernels
(`compile={sizes.compile!r}`) as often took
{cell["kernel_seconds"]:.1f} s: the solve takes **{cell["ratio"]:.2f} times** as long. At most
{MARGIN:g} times, with exactly the least number: {met}."""


def _table(run: Run, points: tuple[Point, ...], varied: str) -> str:
    rows: list[list[markdown.Entry]] = []
    for point in points:
        size = f"{point.parameters:,}, {point.steps:,}, {min(point.slots, point.steps)}"
        ours = run.cells[key(OURS, point)]
        rows.append([size, *([ours["outcome"]] * 5 if ours["outcome"] else _counted(ours))])
        for line in long_loops.PEERS:
            cell = run.cells.get(key(line, point), {"outcome": "not installed"})
            rows[-1].append(
                cell["outcome"] or f"{cell['meta_ratio']:.1f}, {cell['meta_bytes'] / MIB:.2f}"
            )
    headers = [
        "parameters, steps, kept states", "seconds: over plain", "over own forward sweep",
        "peak MiB", "of plain", "replayed / Revolve's bound",
        *(f"{LABELS[line]}: times plain, peak MiB" for line in long_loops.PEERS),
    ]  # fmt: skip
    return f"## More and more {varied}\n\n{markdown.table(headers, rows)}"


def _counted(cell: dict[str, Any]) -> list[str]:
    replays, bound = cell["replayed"], cell["bound"]
    share = f"{replays / bound:.3f} ({replays:,})" if bound else f"none ({replays})"
    return [
        f"{cell['meta_ratio']:.1f}", f"{cell['meta_ratio'] / cell['forward_ratio']:.1f}",
        f"{cell['meta_bytes'] / MIB:.2f}", f"{cell['plain_bytes'] / MIB:.2f}", share,
    ]  # fmt: skip


def _plot(settings: Settings, run: Run, points: tuple[Point, ...], varied: str) -> str:
    parts: list[str] = []
    for what, label in (("ratio", "seconds over plain training"), ("bytes", "peak bytes")):
        series = [_series(run, line, points, varied, f"meta_{what}") for line in LABELS]
        if what == "bytes":
            plain = _series(run, OURS, points, varied, "plain_bytes")
            series.append(Series("plain training", plain.x, plain.y, "--"))
        name = f"{varied}-{what}.png"
        labels = Labels(f"the gradient through training: more {varied}", varied, label)
        loglog(settings.store.directory / name, labels, [line for line in series if line.x])
        parts.append(f"![{label}]({name})")
    return "\n".join(parts)


def _series(run: Run, line: str, points: tuple[Point, ...], varied: str, field: str) -> Series:
    cells = {point: run.cells.get(key(line, point), {}) for point in points}
    known = {getattr(point, varied): cell[field] for point, cell in cells.items() if field in cell}
    return Series(LABELS[line], list(known), list(known.values()))


def _head(sizes: Sizes) -> str:
    return f"""The gradient of a validation loss through a training of digits w.r.t. its
initialisation and all learning rates (odeopt) or its initialisation (the others): a perceptron with
one hidden layer (tanh) as wide as the number of parameters asks for, float32, minibatches of
{long_loops.BATCH}, SGD with learning rate {long_loops.LR:g} and momentum {long_loops.MOMENTUM:g}.
odeopt runs kernels with `compile={sizes.compile!r}` and keeps states by `Binomial`; higher and
TorchOpt unroll.

Every cell is a process of its own on one thread. The gradient and the same training written plainly
with `torch.optim.SGD` are run in turn, up to {sizes.repeats} times; given is the median of the
ratios. "Over own forward sweep" is the ratio to odeopt's own training without a gradient. Peaks are
those of live tensors above those before the call, recorded in runs of their own; the kept states
are in them. Every process may take {sizes.memory_gib:g} GiB beyond what it has after a short first
run ("did not fit" where that is not enough)."""
