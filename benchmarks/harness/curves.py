"""Learning curves on linear axes, with the spread around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness.plots import PALETTE, Labels, save


@dataclass(frozen=True)
class Curve:
    """One method: a line and, where it is known, the end point that was published for it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    published: float | None = None


def curves(path: Path, labels: Labels, lines: Sequence[Curve], bottom: float | None = 0) -> Path:
    """Draw curves and save them as a PNG file, atomically.

    Published end points are crosses at the right edge, in the colour of their method.

    Args:
        path: The file, replaced if it is there.
        labels: Title and axis labels.
        lines: The curves.
        bottom: Where the y axis begins; chosen by the curves where None.

    Returns:
        The path written.
    """
    figure = Figure(figsize=(7.6, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    styles = ["-"] * len(PALETTE) + ["--"] * len(PALETTE)
    for line, colour, style in zip(lines, cycle(PALETTE), cycle(styles), strict=False):
        axes.plot(line.x, line.y, style, label=line.label, color=colour, lw=1.5)
        if line.spread:
            low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
            high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
            axes.fill_between(line.x, low, high, color=colour, alpha=0.08, lw=0)
        if line.published is not None:
            axes.plot(line.x[-1] * 1.02, line.published, "x", color=colour, ms=7, mew=1.8)
    axes.set_title(labels.title, fontsize="medium")
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    axes.set_ylim(bottom=bottom)
    axes.grid(color="0.9", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return save(figure, path)
