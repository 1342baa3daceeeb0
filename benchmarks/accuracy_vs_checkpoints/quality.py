"""The quality of meta-gradients: one method on one problem at one horizon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

import odeopt
from benchmarks import methods
from benchmarks.accuracy_vs_checkpoints import targets
from benchmarks.accuracy_vs_checkpoints.targets import (
    LR,
    OWN,
    SIZES,
    TITLES,
    WORDS,
    Inputs,
    Sizes,
    Target,
    Targets,
    flat,
)
from benchmarks.comparison import cosine, distance
from benchmarks.cost.updates import Line, lines
from benchmarks.harness import costs, markdown, outline, plots
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Settings
from benchmarks.problems.tasks import move


def entries() -> tuple[Line, ...]:
    """Every method, A-MAML twice."""
    return tuple(line for line in lines() if line.compile is None and not line.is_peer)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per problem, horizon and method."""
    chosen: list[Cell] = []
    for problem in sizes.problems:
        make = partial(targets.inputs, problem, sizes, settings.device)
        for t1 in sizes.horizons:
            own = Targets(make, t1, sizes)
            chosen += [
                Cell(key(problem, t1, entry), partial(_compute, entry, t1, own, sizes.repeats))
                for entry in entries()
            ]
    return chosen


def key(problem: str, t1: float, entry: Line) -> str:
    """The key of a cell."""
    return f"{problem} T={t1:g} {entry.label}"


def _compute(entry: Line, t1: float, targets: Targets, repeats: int) -> dict[str, Any]:
    """Errors and costs, with `failure` and no numbers where there is no gradient.

    Where a guard refuses the gradient, `failure` names its error and the numbers are those of
    the same method without guards.
    """
    inputs = targets.inputs()
    inputs = move(inputs, inputs.tasks.train.x.device, torch.float32)
    try:
        sought = {"own": targets.own(entry.method), "flow": targets.flow()}
    except odeopt.OdeoptError as error:
        return {"failure": f"target: {type(error).__name__}", "message": str(error)}
    try:
        return {"failure": "", **_numbers(entry, t1, inputs, sought, repeats, odeopt.Safety())}
    except odeopt.OdeoptError as error:
        refused = {"failure": type(error).__name__, "message": str(error)}
    try:
        return {**refused, **_numbers(entry, t1, inputs, sought, 1, odeopt.Safety.off())}
    except odeopt.OdeoptError:
        return refused


def _numbers(
    entry: Line, t1: float, inputs: Inputs, sought: dict[str, Target], repeats: int,
    safety: odeopt.Safety,
) -> dict[str, Any]:  # fmt: skip
    run = _call(entry, t1, inputs, safety)
    first = run()  # not timed: the first run loads what the others need
    device = inputs.tasks.train.x.device
    gradient = flat(first.grads.params).double()
    return {
        **{
            side: {
                "error": distance(gradient, target.gradient),
                "cosine": cosine(gradient, target.gradient),
                "norm_ratio": (gradient.norm() / target.gradient.norm()).item(),
                "reference_error": target.error,
            }
            for side, target in sought.items()
        },
        "gradient_evaluations": first.stats.gradient_evaluations,
        "hvps": first.stats.hvps,
        "stored_states": first.stats.stored_states,
        "live_bytes": costs.peak_live_bytes(run, device),
        "seconds": median(costs.once(run, device) for _ in range(repeats)),
    }


def _call(
    entry: Line, t1: float, inputs: Inputs, safety: odeopt.Safety
) -> Callable[[], odeopt.MetaGradient]:
    steps = round(t1 / LR)
    states = steps if entry.states is None else min(entry.states, steps)
    inner = methods.Inner(LR, steps, states)
    method = methods.build(entry.method, inputs.problem, inner, safety=safety)
    return methods.gradient_of(method, inputs.params, inputs.tasks)


NAME = "accuracy-vs-checkpoints --only methods"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

SIDES = ("own", "flow")
HEADERS = (
    "method", "error, own", "cosine, own", "norm, own", "error, flow", "cosine, flow",
    "norm, flow", "gradients", "HVPs", "states", "live KiB", "seconds",
)  # fmt: skip


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells(settings, sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen)
    sections = [_head(sizes)]
    sections += [section(done.cells, problem, settings, sizes) for problem in sizes.problems]
    sections.append(_failures(done.cells))
    outline.write(settings, "The quality of meta-gradients", done, sections)


def section(results: Cells, problem: str, settings: Settings, sizes: Sizes) -> str:
    """The plot and the tables of a problem."""
    picture = _plot(results, problem, settings, sizes)
    parts = [f"## {TITLES[problem]}"]
    if picture:
        parts.append(f"![1 - cosine against T]({picture})")
    for t1 in sizes.horizons:
        own = {entry: results[key(problem, t1, entry)] for entry in entries()}
        rows = [_row(entry, cell) for entry, cell in own.items()]
        known = [c["flow"]["reference_error"] for c in own.values() if "flow" in c]
        error = markdown.scientific(known[0]) if known else "unknown"
        parts.append(
            f"**T = {t1:g}** ({round(t1 / LR)} steps; error of the flow's reference: {error})\n\n"
            + markdown.table(HEADERS, rows).rstrip()
        )
    return "\n\n".join(parts)


def _row(entry: Line, cell: dict[str, Any]) -> list[markdown.Entry]:
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


def _plot(results: Cells, problem: str, settings: Settings, sizes: Sizes) -> str:
    """1 - cosine to the flow's gradient; what a guard refuses is left out.

    Returns:
        The name of the file, "" where there is nothing to draw.
    """
    series: list[plots.Series] = []
    for entry in entries():
        own = {t1: results[key(problem, t1, entry)] for t1 in sizes.horizons}
        usable = {t1: cell for t1, cell in own.items() if not cell["failure"]}
        if usable:
            away = [1 - cell["flow"]["cosine"] for cell in usable.values()]
            series.append(plots.Series(entry.label, list(usable), away))
    if not series:
        return ""
    name = f"cosine-{problem}.png"
    title = f"{TITLES[problem]}: distance in direction from the flow's meta-gradient"
    plots.loglog(settings.store.directory / name, plots.Labels(title, "T", "1 - cosine"), series)
    return name


def _failures(results: Cells) -> str:
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
