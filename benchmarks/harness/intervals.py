"""Values with their intervals, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness.plots import PALETTE, save


@dataclass(frozen=True)
class Row:
    """A value and half the width of its interval."""

    label: str
    value: float
    half_width: float
    emphasised: bool = False


def intervals(path: Path, title: str, x: str, rows: Sequence[Row]) -> Path:
    """Draw rows from top to bottom and save them as a PNG file, atomically.

    Args:
        path: The file, replaced if it is there.
        title: Of the plot.
        x: What the values are.
        rows: The values.

    Returns:
        The path written.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.27 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        colour = PALETTE[1] if row.emphasised else PALETTE[0]
        axes.errorbar(
            row.value, place, xerr=row.half_width, fmt="o", color=colour, ms=4.5, capsize=3
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.grid(color="0.9", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)
