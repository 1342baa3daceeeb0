"""Line plots on two logarithmic axes, drawn without a display."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odeopt.tools import files

# Okabe and Ito's palette, told apart with every common form of colour blindness; no yellow,
# which is too pale for thin lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INSIDE_LEGEND = 4
"""With more lines than this the legend stands beside the axes."""


@dataclass(frozen=True)
class Series:
    """One line, or points if the style is empty; those not finite and positive are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "-"


@dataclass(frozen=True)
class Slope:
    """A thin reference line y = y0 (x/x0)^exponent over a range of x from x0."""

    label: str
    exponent: float
    start: tuple[float, float]
    x_end: float


@dataclass(frozen=True)
class Labels:
    """The texts of a plot."""

    title: str
    x: str
    y: str


def loglog(
    path: Path, labels: Labels, series: Sequence[Series], slopes: Sequence[Slope] = ()
) -> Path:
    """Draw lines on logarithmic axes and save them as a PNG file, atomically.

    Args:
        path: The file, replaced if it is there.
        labels: Title and axis labels.
        series: The measured lines, each with its own colour and marker.
        slopes: Reference lines for orders of convergence or growth.

    Returns:
        The path written.
    """
    wide = len(series) + len(slopes) > INSIDE_LEGEND
    figure = Figure(figsize=(8.4 if wide else 6.0, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, series, slopes)
    _decorate(axes, labels)
    if wide:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    else:
        axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def _draw(axes: Axes, series: Sequence[Series], slopes: Sequence[Slope]) -> None:
    for line, colour, marker in zip(series, cycle(PALETTE), cycle(MARKERS), strict=False):
        x, y = _drawable(line)
        axes.plot(
            x, y, label=line.label, linestyle=line.style, color=colour, marker=marker,
            ms=4.5, lw=1.4,
        )  # fmt: skip
    for slope in slopes:
        x0, y0 = slope.start
        y_end = y0 * (slope.x_end / x0) ** slope.exponent
        axes.plot([x0, slope.x_end], [y0, y_end], ":", label=slope.label, color="0.45", lw=1.2)


def _drawable(series: Series) -> tuple[list[float], list[float]]:
    pairs = [
        (x, y)
        for x, y in zip(series.x, series.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _decorate(axes: Axes, labels: Labels) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(labels.title, fontsize="medium")
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    axes.grid(which="major", color="0.88", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as a PNG file, atomically; the path written."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return files.write_bytes(path, buffer.getvalue())
