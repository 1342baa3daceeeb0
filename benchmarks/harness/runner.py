"""Compute the cells of a benchmark one by one, resuming where an earlier run stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.harness.store import ResultStore
from odeopt.tools.keywords import unknown


@dataclass(frozen=True)
class Cell:
    """One result: `compute` returns plain data to be stored under `key`."""

    key: str
    compute: Callable[[], dict[str, Any]]


class IncompleteError(RuntimeError):
    """Cells were left out on request, so that there is no report yet."""

    def __init__(self, stored: int, total: int) -> None:
        super().__init__(
            f"{stored} of {total} cells are stored; run the command without --only for the others"
            " and the report"
        )


class UnknownCellError(LookupError):
    """Cells were asked for that the benchmark does not have."""


def run_cells(
    title: str, cells: Sequence[Cell], store: ResultStore, fingerprint: str, only: str,
    gaps: bool = False,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Compute the cells that are not stored yet, storing each as soon as it is done.

    Args:
        title: What the progress bar, on standard error, calls this run.
        cells: The cells in the order of computation; their keys must differ.
        store: Where results are kept.
        fingerprint: What the results depend on besides their keys (`store.fingerprint`).
        only: Compute cells whose key contains this text only, "" for all; several processes may
            so share the work and the store.
        gaps: Whether a report can do without some of the cells that `only` left out.

    Returns:
        The value of each cell by its key, in the order of `cells`.

    Raises:
        UnknownCellError: No key contains `only`; the message lists the keys.
        KeyboardInterrupt: The user stopped the run; the cells done so far stay stored.
        IncompleteError: Cells are missing that `only` left out, and `gaps` is false.
    """
    _check_unique([cell.key for cell in cells])
    chosen = _choose(cells, only)
    found = {cell.key: store.get(cell.key, fingerprint) for cell in cells}
    values = {key: value for key, value in found.items() if value is not None}
    console = Console(stderr=True)
    try:
        _compute_missing(title, chosen, values, store, fingerprint, console)
    except KeyboardInterrupt:
        _say(
            console,
            f"interrupted: {len(values)} of {len(cells)} cells are stored in {store.directory}; "
            "run the same command again to resume",
        )
        raise
    if not gaps:
        check_complete(values, cells)
    return {cell.key: values[cell.key] for cell in cells if cell.key in values}


def check_complete(found: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Raise `IncompleteError` unless every cell is there."""
    if len(found) < len(cells):
        raise IncompleteError(len(found), len(cells))


def _choose(cells: Sequence[Cell], only: str) -> list[Cell]:
    """The cells whose key contains a text."""
    chosen = [cell for cell in cells if only in cell.key]
    if only and not chosen:
        keys = [cell.key for cell in cells]
        parts = dict.fromkeys(part for key in keys for part in (key, *key.split()))
        message = unknown("cell", [only], [repr(key) for key in keys], near=parts)
        raise UnknownCellError(f"--only: {message} A part of a key will do.")
    return chosen


def _compute_missing(
    title: str,
    cells: Sequence[Cell],
    values: dict[str, dict[str, Any]],
    store: ResultStore,
    fingerprint: str,
    console: Console,
) -> None:
    with _progress(console) as progress:
        done = sum(cell.key in values for cell in cells)
        bar = progress.add_task(title, total=len(cells), completed=done, cell="")
        for cell in cells:
            if cell.key in values:
                continue
            progress.update(bar, cell=cell.key)
            values[cell.key] = store.put(cell.key, fingerprint, cell.compute())
            progress.advance(bar)
            if not console.is_terminal:
                done = sum(known.key in values for known in cells)
                _say(console, f"{title}: {done}/{len(cells)} {cell.key}")


def _progress(console: Console) -> Progress:
    """The progress bar; where there is no terminal, one line per cell takes its place."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[cell]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_unique(keys: Sequence[str]) -> None:
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"cells with the same key: {', '.join(repeated)}")
