"""Tables, plots, fits and the comparison with `higher`."""

from __future__ import annotations

from typing import Any

from benchmarks.cost.updates import curves, measure, resident
from benchmarks.cost.updates.cases import LR, Line
from benchmarks.cost.updates.check import WANTED
from benchmarks.cost.updates.measure import CHECK, Cells
from benchmarks.cost.updates.sizes import SIZES, Sizes
from benchmarks.harness import markdown, outline
from benchmarks.harness.registry import Settings

NAME = "cost --only updates"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

MIB = 2**20


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    mark = outline.mark(settings, REVISION, sizes)
    done = outline.compute(settings, NAME, measure.cells(settings, sizes, mark), mark)
    done.environment["threads"] = 1
    results, lines = done.cells, measure.measured_lines(sizes)
    sections = [
        _head(sizes),
        *_tables(results, lines, sizes, settings),
        curves.section(results, lines, sizes, settings),
        check_section(results.get(CHECK), sizes),
        resident.section(results),
        _outcomes(results, lines),
    ]
    outline.write(settings, "Memory and time of one meta-update", done, sections)


def _tables(results: Cells, lines: tuple[Line, ...], sizes: Sizes, settings: Settings) -> list[str]:
    resident = settings.device.type == "cpu"
    found = [
        _table("Seconds of one meta-update", _seconds, results, lines, sizes),
        _table("Peak of live tensors, MiB", _live, results, lines, sizes),
        _table(
            "Peak of live tensors per task that is in memory, KiB", _per_task, results, lines, sizes
        ),
    ]
    if resident:
        found.append(_table("Growth of resident memory, MiB", _resident, results, lines, sizes))
    return found


def _table(title: str, show: Any, results: Cells, lines: tuple[Line, ...], sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = []
    for line in lines:
        cells = measure.of_line(results, line, sizes)
        entries = [_entry(cells[n], show) if cells else "not installed" for n in sizes.steps]
        rows.append([line.label, *entries])
    return f"## {title}\n\n{markdown.table(['inner steps', *map(str, sizes.steps)], rows)}".rstrip()


def _entry(cell: dict[str, Any], show: Any) -> str:
    return cell["outcome"] or show(cell)


def _seconds(cell: dict[str, Any]) -> str:
    return f"{cell['seconds']:.3g}"


def _live(cell: dict[str, Any]) -> str:
    return f"{cell['live_bytes'] / MIB:.2f}"


def _per_task(cell: dict[str, Any]) -> str:
    return f"{cell['live_bytes'] / cell['together'] / 1024:.0f}"


def _resident(cell: dict[str, Any]) -> str:
    return f"{cell['resident_bytes'] / MIB:.1f}"


def _outcomes(results: Cells, lines: tuple[Line, ...]) -> str:
    """Why cells have no numbers."""
    reasons = [
        f"- {name}: {cell['outcome']} ({cell['message']})"
        for name, cell in results.items()
        if cell.get("outcome")
    ]
    reasons += [f"- {line.label}: the package is not installed" for line in lines
                if not line.installed]  # fmt: skip
    return "## Cells without numbers\n\n" + ("\n".join(reasons) or "- none")


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
