"""Plots."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Settings
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.criteria import Cells
from benchmarks.peers.sizes import Point, Sizes

STYLES = ("-", "--")


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
    found: list[Series] = []
    for index, (name, contender) in enumerate(CONTENDERS.items()):
        known = [
            (float(getattr(point, varied)), cells[point.key]["contenders"][name])
            for point in line
            if not cells[point.key]["contenders"].get(name, {"outcome": "-"})["outcome"]
        ]
        if known:
            style = STYLES[index // 7 % len(STYLES)]
            values = [_value(cell, what) for _, cell in known]
            found.append(Series(contender.label, [x for x, _ in known], values, style))
    return found


def _value(cell: dict[str, Any], what: str) -> float:
    found = cell[what]
    return median(found) if isinstance(found, list) else float(found)


def precision(cell: dict[str, Any], settings: Settings) -> None:
    """Errors to the flow against seconds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in cell.get("entries", []):
        if not entry["outcome"]:
            point = (median(entry["seconds"]), entry["errors"]["B"])
            found.setdefault(entry["contender"], []).append(point)
    series = [
        Series(CONTENDERS[name].label, [x for x, _ in line], [y for _, y in line])
        for name, line in found.items()
    ]
    labels = Labels("the flow's gradient at T = 5, five tasks", "seconds", "relative error to B")
    loglog(settings.store.directory / "precision.png", labels, series)
