"""Tables and numbers in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, pstdev
from typing import Any

Entry = str | int | float
"""A table entry: floats are formatted with `scientific`, the others as they are."""

Column = tuple[str, str | Callable[[Any], Entry]]
"""Its header, and what stands in it of a cell: a format of the cell's keys, or a function."""


def scientific(value: float) -> str:
    """Three significant digits, e.g. `1.23e-4`; `0` for zero, `unstable` for NaN or infinity."""
    if not math.isfinite(value):
        return "unstable"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def with_spread(mean: float, spread: float) -> str:
    """A mean and its spread, e.g. `1.23e-4 ± 5.60e-6`, or `unstable` where the mean is."""
    if not math.isfinite(mean):
        return scientific(mean)
    return f"{scientific(mean)} ± {scientific(spread)}"


def mean(values: Sequence[float]) -> str:
    """The mean to three decimals and, where there are several, the standard deviation."""
    spread = f" ± {pstdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def table(headers: Sequence[str], rows: Sequence[Sequence[Entry]]) -> str:
    """A pipe table, its columns but the first aligned to the right, with a final newline.

    Raises:
        ValueError: A row has another number of entries than the headers.
    """
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"{len(row)} entries under {len(headers)} headers: {list(row)}")
    rule = ["---"] + ["---:"] * (len(headers) - 1)
    lines = [_line(headers), "|" + "|".join(rule) + "|", *(_line(row) for row in rows)]
    return "\n".join(lines) + "\n"


def described(
    labels: Sequence[str], columns: Sequence[Column],
    rows: Iterable[tuple[Sequence[Entry], dict[str, Any] | str]],
) -> str:  # fmt: skip
    """A table of cells; in place of one may stand why it has no numbers.

    Args:
        labels: The headers of what is said of each row before its cell.
        columns: The others.
        rows: What is said, and the cell.
    """
    lines: list[Sequence[Entry]] = []
    for own, cell in rows:
        if isinstance(cell, str):
            lines.append([*own, cell, *[""] * (len(columns) - 1)])
        else:
            lines.append([*own, *(_shown(cell, show) for _, show in columns)])
    return table([*labels, *(header for header, _ in columns)], lines)


def _shown(cell: dict[str, Any], show: str | Callable[[Any], Entry]) -> Entry:
    return show.format_map(cell) if isinstance(show, str) else show(cell)


def _line(entries: Sequence[Entry]) -> str:
    return "| " + " | ".join(_text(entry) for entry in entries) + " |"


def _text(entry: Entry) -> str:
    text = scientific(entry) if isinstance(entry, float) else str(entry)
    return text.replace("|", "\\|").replace("\n", " ")
