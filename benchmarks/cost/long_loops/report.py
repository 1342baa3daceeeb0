"""The cells, each a child process, and the report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.cost.long_loops import child, itself, loops
from benchmarks.cost.long_loops.loops import LABELS, OURS
from benchmarks.cost.long_loops.sizes import SIZES, Point, Sizes
from benchmarks.harness import markdown, outline, processes
from benchmarks.harness.outline import Run
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell

NAME = "cost --only long-loops"
REVISION = 3
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

START_UP, SLACK = 60.0, 30.0
"""Seconds to start, and how many times as long as timed runs all runs of a cell may take."""

MIB = 2**20
ITSELF = "kernels"
"""The cell in which a solve is compared with its own kernels."""

MARGIN = 1.3
"""How many times as long as its kernels a solve may take."""
LINES = {"longer": "steps", "larger": "parameters"}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    mark = outline.mark(settings, REVISION, sizes)
    done = outline.compute(settings, NAME, cells(settings, sizes, mark), mark)
    done.environment["threads"] = 1
    sections = [_head(sizes)]
    for name, varied in LINES.items():
        points = getattr(sizes, name)
        sections += [_table(done, points, varied), _plot(settings, done, points, varied)]
    sections += [_itself(done, sizes), _missing(done)]
    outline.write(settings, "A meta-gradient in plain trainings", done, sections)


def cells(settings: Settings, sizes: Sizes, mark: str) -> list[Cell]:
    """One cell per package and point; a point of both lines is measured once."""
    find = partial(settings.store.get, fingerprint=mark)
    found: dict[str, Cell] = {}
    for line in filter(loops.installed, LABELS):
        for points in (sizes.longer, sizes.larger):
            for index, point in enumerate(points):
                smaller = key(line, points[index - 1]) if index else ""
                compute = partial(_compute, settings, sizes, line, point, smaller, find)
                found.setdefault(key(line, point), Cell(key(line, point), compute))
    alone = Cell(key(ITSELF, sizes.itself), partial(_compute_itself, settings, sizes))
    return [*found.values(), alone]


def key(line: str, point: Point) -> str:
    """The key of a cell."""
    return f"{line} parameters={point.parameters} steps={point.steps} slots={point.slots}"


def _compute(
    settings: Settings,
    sizes: Sizes,
    line: str,
    point: Point,
    smaller: str,
    find: Callable[[str], dict[str, Any] | None],
) -> dict[str, Any]:
    missing = processes.after_failure(find(smaller) if smaller else None, smaller)
    if missing is not None:
        return missing
    job = child.Job(
        line, point, sizes.repeats, sizes.memory_gib, sizes.seconds, str(settings.device),
        sizes.compile,
    )  # fmt: skip
    return processes.run(child.measure, job, limit=_limit(sizes))


def _compute_itself(settings: Settings, sizes: Sizes) -> dict[str, Any]:
    job = itself.Job(
        sizes.itself, sizes.compile, min(sizes.repeats, 3), str(settings.device),
        sizes.memory_gib,
    )  # fmt: skip
    return processes.run(itself.measure, job, limit=_limit(sizes))


def _limit(sizes: Sizes) -> float:
    """Seconds that a process may take."""
    return START_UP + SLACK * sizes.seconds


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
        ours = run.cells[key(OURS, point)]
        rows.append([_size(point), *([ours["outcome"]] * 5 if ours["outcome"] else _counted(ours))])
        for line in PEER_NAMES:
            cell = run.cells.get(key(line, point), {"outcome": "not installed"})
            rows[-1].append(cell["outcome"] or _times(cell))
    headers = [
        "parameters, steps, kept states", "seconds: over plain", "over own forward sweep",
        "peak MiB", "of plain", "replayed / Revolve's bound",
        *(f"{LABELS[line]}: times plain, peak MiB" for line in PEER_NAMES),
    ]  # fmt: skip
    return f"## More and more {varied}\n\n{markdown.table(headers, rows)}".rstrip()


PEER_NAMES = tuple(loops.PEERS)


def _size(point: Point) -> str:
    return f"{point.parameters:,}, {point.steps:,}, {min(point.slots, point.steps)}"


def _counted(cell: dict[str, Any]) -> list[str]:
    replays, bound = cell["replayed"], cell["bound"]
    share = f"{replays / bound:.3f} ({replays:,})" if bound else f"none ({replays})"
    return [
        f"{cell['meta_ratio']:.1f}", f"{cell['meta_ratio'] / cell['forward_ratio']:.1f}",
        f"{cell['meta_bytes'] / MIB:.2f}", f"{cell['plain_bytes'] / MIB:.2f}", share,
    ]  # fmt: skip


def _times(cell: dict[str, Any]) -> str:
    return f"{cell['meta_ratio']:.1f}, {cell['meta_bytes'] / MIB:.2f}"


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
    found = [(point, run.cells.get(key(line, point), {})) for point in points]
    known = [(point, cell) for point, cell in found if field in cell]
    x = [float(getattr(point, varied)) for point, _ in known]
    return Series(LABELS[line], x, [cell[field] for _, cell in known])


def _missing(run: Run) -> str:
    reasons = [
        f"- {name}: {cell['outcome']} ({cell['message']})"
        for name, cell in run.cells.items()
        if cell["outcome"]
    ]
    reasons += [f"- {LABELS[line]}: not installed" for line in LABELS if not loops.installed(line)]
    return "## Cells without numbers\n\n" + ("\n".join(reasons) or "- none")


def _head(sizes: Sizes) -> str:
    return f"""The gradient of a validation loss through a training of digits w.r.t. its
initialisation and all learning rates (odeopt) or its initialisation (the others): a perceptron with
one hidden layer (tanh) as wide as the number of parameters asks for, float32, minibatches of
{loops.BATCH}, SGD with learning rate {loops.LR:g} and momentum {loops.MOMENTUM:g}. odeopt runs
kernels with `compile={sizes.compile!r}` and keeps states by `Binomial`; higher and TorchOpt unroll.

Every cell is a process of its own on one thread. The gradient and the same training written plainly
with `torch.optim.SGD` are run in turn, up to {sizes.repeats} times; given is the median of the
ratios. "Over own forward sweep" is the ratio to odeopt's own training without a gradient. Peaks are
those of live tensors above those before the call, recorded in runs of their own; the kept states
are in them. Every process may take {sizes.memory_gib:g} GiB beyond what it has after a short first
run ("did not fit" where that is not enough)."""
