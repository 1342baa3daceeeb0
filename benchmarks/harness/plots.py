"""Plots, drawn without a display: logarithmic lines, learning curves, intervals.

What draws is imported when something is drawn, so that processes that measure start without it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from odeopt.tools import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common form of colour blindness; no yellow,
# which is too pale for thin lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = [style for style in ("-", "--", ":") for _ in PALETTE]
"""Lines of the same colour have different styles."""

INSIDE_LEGEND = 4
"""With more lines than this the legend stands beside the axes."""


@dataclass(frozen=True)
class Series:
    """One line, or points if the style is empty; those not finite and positive are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str | None = None  # chosen by its place where None


@dataclass(frozen=True)
class Slope:
    """A thin reference line y = y0 (x/x0)^exponent over a range of x from x0."""

    label: str
    exponent: float
    start: tuple[float, float]
    x_end: float


@dataclass(frozen=True)
class Curve:
    """One method: a line and, where it is known, the end point that was published for it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()
    published: float | None = None


@dataclass(frozen=True)
class Row:
    """A value and half the width of its interval."""

    label: str
    value: float
    half_width: float
    emphasised: bool = False


@dataclass(frozen=True)
class Labels:
    """The texts of a plot."""

    title: str
    x: str
    y: str = ""


def loglog(
    path: Path, labels: Labels, series: Sequence[Series], slopes: Sequence[Slope] = ()
) -> Path:
    """Draw lines on logarithmic axes and save them as a PNG file, atomically.

    Each line has its own colour and marker; slopes are reference lines for orders of convergence
    or growth.

    Returns:
        The path written.
    """
    wide = len(series) + len(slopes) > INSIDE_LEGEND
    figure, axes = _axes(labels, 8.4 if wide else 6.0, 4.4)
    looks = zip(series, cycle(PALETTE), cycle(MARKERS), cycle(STYLES), strict=False)
    for line, colour, marker, style in looks:
        pairs = [
            (x, y)
            for x, y in zip(line.x, line.y, strict=True)
            if math.isfinite(x) and math.isfinite(y) and x > 0 and y > 0
        ]
        axes.plot(
            [x for x, _ in pairs], [y for _, y in pairs], label=line.label, color=colour,
            linestyle=style if line.style is None else line.style, marker=marker, ms=4.5, lw=1.4,
        )  # fmt: skip
    for slope in slopes:
        x0, y0 = slope.start
        y_end = y0 * (slope.x_end / x0) ** slope.exponent
        axes.plot([x0, slope.x_end], [y0, y_end], ":", label=slope.label, color="0.45", lw=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    if wide:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    else:
        axes.legend(frameon=False, fontsize="small")
    return save(figure, path)


def picture(
    path: Path, alt: str, labels: Labels, lines: Mapping[str, Mapping[float, float]],
    slopes: Sequence[Slope] = (),
) -> str:  # fmt: skip
    """Draw lines by `loglog`, each a value by x; those without points are left out.

    Returns:
        The picture in Markdown, "" where there is nothing to draw.
    """
    known = {label: points for label, points in lines.items() if points}
    if not known:
        return ""
    series = [Series(label, list(line), list(line.values())) for label, line in known.items()]
    loglog(path, labels, series, slopes)
    return f"![{alt}]({path.name})"


def curves(path: Path, labels: Labels, lines: Sequence[Curve], bottom: float | None = 0) -> Path:
    """Draw learning curves, with the spread around them, and save them as a PNG file, atomically.

    Published end points are crosses at the right edge, in the colour of their method. The y axis
    begins at `bottom`, or where the curves choose if that is None.

    Returns:
        The path written.
    """
    figure, axes = _axes(labels, 7.6, 4.4)
    for line, colour, style in zip(lines, cycle(PALETTE), cycle(STYLES), strict=False):
        axes.plot(line.x, line.y, style, label=line.label, color=colour, lw=1.5)
        if line.spread:
            low = [y - s for y, s in zip(line.y, line.spread, strict=True)]
            high = [y + s for y, s in zip(line.y, line.spread, strict=True)]
            axes.fill_between(line.x, low, high, color=colour, alpha=0.08, lw=0)
        if line.published is not None:
            axes.plot(line.x[-1] * 1.02, line.published, "x", color=colour, ms=7, mew=1.8)
    axes.set_ylim(bottom=bottom)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return save(figure, path)


def intervals(path: Path, labels: Labels, rows: Sequence[Row]) -> Path:
    """Draw values with their intervals from top to bottom, and save them as a PNG file, atomically.

    Returns:
        The path written.
    """
    figure, axes = _axes(labels, 6.4, 1.2 + 0.27 * len(rows))
    for place, row in enumerate(rows):
        colour = PALETTE[1] if row.emphasised else PALETTE[0]
        axes.errorbar(
            row.value, place, xerr=row.half_width, fmt="o", color=colour, ms=4.5, capsize=3
        )
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.invert_yaxis()
    return save(figure, path)


def _axes(labels: Labels, width: float, height: float) -> tuple[Figure, Axes]:
    """Empty axes with their texts."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(labels.title, fontsize="medium")
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    axes.grid(which="major", color="0.9", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> Path:
    """Save a figure as a PNG file, atomically; the path written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return files.write_bytes(path, buffer.getvalue())
