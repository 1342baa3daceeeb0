"""Tables per problem and horizon, and one plot per problem."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy_vs_checkpoints.methods.measure import Entry, cells, entries, key
from benchmarks.accuracy_vs_checkpoints.methods.problems import PROBLEMS
from benchmarks.accuracy_vs_checkpoints.methods.sizes import LR, SIZES, Sizes
from benchmarks.accuracy_vs_checkpoints.methods.targets import OWN, WORDS
from benchmarks.harness import markdown, outline, plots
from benchmarks.harness.registry import Settings

NAME = "accuracy-vs-checkpoints --only methods"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

Results = dict[str, dict[str, Any]]
SIDES = ("own", "flow")
HEADERS = (
    "method", "error, own", "cosine, own", "norm, own", "error, flow", "cosine, flow",
    "norm, flow", "gradients", "HVPs", "states", "live KiB", "seconds",
)  # fmt: skip


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells(settings, sizes)
    done = outline.compute_alone(settings, NAME, REVISION, sizes, chosen)
    sections = [_head(sizes)]
    sections += [section(done.cells, problem, settings, sizes) for problem in sizes.problems]
    sections.append(_failures(done.cells))
    outline.write(settings, "The quality of meta-gradients", done, sections)


def section(results: Results, problem: str, settings: Settings, sizes: Sizes) -> str:
    """The plot and the tables of a problem."""
    picture = _plot(results, problem, settings, sizes)
    parts = [f"## {PROBLEMS[problem].title}"]
    if picture:
        parts.append(f"![1 - cosine against T]({picture})")
    for t1 in sizes.horizons:
        rows = [_row(entry, results[key(problem, t1, entry)]) for entry in entries()]
        own = _reference_error(results, problem, t1)
        parts.append(
            f"**T = {t1:g}** ({round(t1 / LR)} steps; error of the flow's reference: {own})\n\n"
            + markdown.table(HEADERS, rows).rstrip()
        )
    return "\n\n".join(parts)


def _row(entry: Entry, cell: dict[str, Any]) -> list[markdown.Entry]:
    """The row of a method; one that is refused is marked, with its error's name."""
    label = f"{entry.label} ({cell['failure']})" if cell["failure"] else entry.label
    if "own" not in cell:
        return [label, *[""] * (len(HEADERS) - 1)]
    numbers: list[markdown.Entry] = []
    for side in SIDES:
        part = cell[side]
        numbers += [float(part["error"]), f"{part['cosine']:.6f}", f"{part['norm_ratio']:.4f}"]
    return [
        label, *numbers, cell["gradient_evaluations"], cell["hvps"], cell["stored_states"],
        f"{cell['live_bytes'] / 1024:.0f}", f"{cell['seconds']:.3g}",
    ]  # fmt: skip


def _reference_error(results: Results, problem: str, t1: float) -> str:
    found = [results[key(problem, t1, entry)] for entry in entries()]
    known = [cell["flow"]["reference_error"] for cell in found if "flow" in cell]
    return markdown.scientific(known[0]) if known else "unknown"


def _plot(results: Results, problem: str, settings: Settings, sizes: Sizes) -> str:
    """1 - cosine to the flow's gradient; what a guard refuses is left out.

    Returns:
        The name of the file, "" where there is nothing to draw.
    """
    series: list[plots.Series] = []
    for index, entry in enumerate(entries()):
        found = {t1: results[key(problem, t1, entry)] for t1 in sizes.horizons}
        usable = {t1: cell for t1, cell in found.items() if not cell["failure"]}
        away = [1 - cell["flow"]["cosine"] for cell in usable.values()]
        style = "-" if index < len(plots.PALETTE) else "--"
        if usable:
            series.append(plots.Series(entry.label, list(usable), away, style))
    if not series:
        return ""
    name = f"cosine-{problem}.png"
    title = f"{PROBLEMS[problem].title}: distance in direction from the flow's meta-gradient"
    labels = plots.Labels(title, "T", "1 - cosine")
    plots.loglog(settings.store.directory / name, labels, series)
    return name


def _failures(results: Results) -> str:
    lines = [
        f"- {name}: {cell['failure']}: {cell['message']}"
        for name, cell in results.items()
        if cell["failure"]
    ]
    return "## Gradients that were refused\n\n" + ("\n".join(lines) or "- none")


def _head(sizes: Sizes) -> str:
    targets = "\n".join(f"- {entry.label}: {WORDS[OWN[entry.method]]}" for entry in entries())
    return f"""The meta-gradient w.r.t. the initialisation, in float32, of {sizes.tasks} tasks
({sizes.shots} + {sizes.shots} points in the regression tasks, protocol "code"), learning rate
{LR:g} and T / {LR:g} steps. It is compared with two gradients in float64 that must not be mixed:
that of the method's *own* target, which tells how well it computes what it stands for, and that
of the *flow* (RK4 with {sizes.rate} steps per unit of time and its exact adjoint; its error is
estimated from half the steps), which tells whether what it stands for is that. Relative L2
error, cosine, and the ratio of the norms. Reptile's direction is not the gradient of anything,
and its norm means nothing. Counts are of one task; live KiB is the peak of live tensors of all
tasks, above those before. A method in whose row an error is named is refused with the default
guards; its numbers, where there are any, are those without guards.

The methods' own targets:

{targets}"""
