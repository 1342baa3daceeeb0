"""The tables of the report."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.harness import markdown
from benchmarks.peers import ahead, criteria, problems
from benchmarks.peers.apart import spread
from benchmarks.peers.contenders import CONTENDERS, EAGER, KERNELS, OURS
from benchmarks.peers.criteria import Cells
from benchmarks.peers.sizes import Point, Sizes

MIB = 2**20


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
        for text in ahead.sentences(cells[point.key]["contenders"])
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
    found = {name: cells[name] for name in CONTENDERS if name in cells}
    base = next(
        (found[name] for name in (OURS, EAGER) if not found.get(name, {"outcome": "-"})["outcome"]),
        None,
    )
    rows = [[CONTENDERS[name].label, *_row(cell, base)] for name, cell in found.items()]
    headers = [
        "", "target", "seconds", "least to greatest", "over odeopt", "peak MiB", "over odeopt",
        "resident MiB", "error to A", "error to B", "gradients + HVPs", "kept", "start, s",
    ]  # fmt: skip
    for row, name in zip(rows, found, strict=True):
        row.insert(1, CONTENDERS[name].target)
    return markdown.table(headers, rows)


def _row(cell: dict[str, Any], base: dict[str, Any] | None) -> list[markdown.Entry]:
    if cell["outcome"]:
        return [cell["outcome"], *[""] * 10]
    seconds, size = median(cell["seconds"]), cell["live_bytes"]
    resident = cell["resident_bytes"]
    work = f"{cell['gradient_evaluations']} + {cell['hvps']}" if "hvps" in cell else ""
    return [
        f"{seconds:.3g}", spread(cell["seconds"]),
        f"{criteria.times(cell['seconds'], base['seconds']):.2f}" if base else "",
        f"{size / MIB:.2f}", f"{size / base['live_bytes']:.2f}" if base else "",
        "" if resident is None else f"{resident / MIB:.1f}",
        cell["errors"]["A"], cell["errors"]["B"], work, cell.get("stored_states", ""),
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
    return f"{_OVERHEAD}\n\n{markdown.table(headers, rows)}".rstrip()


def precision(cell: dict[str, Any]) -> str:
    """Errors to the flow against seconds, in one process."""
    if cell["outcome"]:
        return f"{_PRECISION}\n\n{cell['outcome']}: {cell['message']}"
    rows: list[list[markdown.Entry]] = []
    for entry in cell["entries"]:
        one = CONTENDERS[entry["contender"]]
        row: list[markdown.Entry] = [one.label, f"{one.setting} = {entry['setting']:g}"]
        if entry["outcome"]:
            rows.append([*row, entry["outcome"], "", "", ""])
            continue
        work = f"{entry['gradient_evaluations']} + {entry['hvps']}" if "hvps" in entry else ""
        seconds = entry["seconds"]
        rows.append([*row, f"{median(seconds):.3g}", spread(seconds), entry["errors"]["B"], work])
    headers = ["", "setting", "seconds", "least to greatest", "error to B", "gradients + HVPs"]
    own = markdown.scientific(cell["reference_error"])
    table = markdown.table(headers, rows)
    return f"{_PRECISION} The reference's own error is {own}.\n\n{table}".rstrip()


def stiff(cells: Cells, sizes: Sizes) -> str:
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
            f" the reference's own error is {own}.\n\n{markdown.table(headers, rows)}".rstrip()
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
