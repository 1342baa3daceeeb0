"""What every benchmark does: compute its cells one by one, then write the report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import odeopt
from benchmarks.harness import processes
from benchmarks.harness.registry import IncompleteError, Settings, UnknownCellError
from benchmarks.harness.store import ResultStore, fingerprint
from odeopt.tools.keywords import unknown

Cells = dict[str, dict[str, Any]]
"""The value of each cell by its key."""


@dataclass(frozen=True)
class Cell:
    """One result: `compute` returns plain data to be stored under `key`.

    It is not tried where one of the `smaller` cells did not fit or did not finish; these are keys,
    each with what the message calls it.
    """

    key: str
    compute: Callable[[], dict[str, Any]]
    smaller: Mapping[str, str] = field(default_factory=dict[str, str])


class Run(NamedTuple):
    """What has been computed of a benchmark."""

    name: str
    environment: dict[str, str | int]
    cells: Cells
    total: int  # how many cells there are

    def check_complete(self) -> None:
        """Raise `IncompleteError` unless every cell is there."""
        if len(self.cells) < self.total:
            raise IncompleteError(len(self.cells), self.total)


def compute(
    settings: Settings, name: str, revision: int, sizes: object, cells: Sequence[Cell],
    dtype: torch.dtype = torch.float32, threads: int | None = 1, gaps: bool = False,
) -> Run:  # fmt: skip
    """Compute the cells that are missing.

    Args:
        settings: Of the run.
        name: The benchmark's, as it is called.
        revision: Raised when what a cell computes changes, so that it is computed anew.
        sizes: The sizes of the run, whose `repr` stored cells depend on.
        cells: All of them.
        dtype: The default one.
        threads: Of this process; problems are small, and more threads only wait for each other.
        gaps: Whether the report can do without some of the cells that `settings.only` left out.

    Raises:
        IncompleteError: Cells are missing, and `gaps` is false.
    """
    torch.set_default_dtype(dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    circumstances = environment(settings.device)
    mark = fingerprint(
        {
            "revision": revision,
            "odeopt": odeopt.__version__,
            "torch": circumstances["torch"],
            "device": circumstances["device_name"],
            "sizes": repr(sizes),
        }
    )
    values = run_cells(name, cells, settings.store, mark, settings.only)
    run = Run(name, circumstances, values, len(cells))
    if not gaps:
        run.check_complete()
    return run


def write(settings: Settings, title: str, run: Run, sections: Sequence[str]) -> None:
    """Write `report.md`, which begins with the circumstances, and `results.json`.

    Empty sections are left out.

    Raises:
        IncompleteError: The report is not of all cells.
    """
    listed = "\n".join(f"- {name}: {value}" for name, value in run.environment.items())
    head = f"""# {title}

Made by `python -m benchmarks {run.name} --preset {settings.preset.value}`, odeopt
{odeopt.__version__}. All numbers are in `results.json`.

{listed}"""
    parts = [head, *(section.rstrip() for section in sections if section)]
    settings.store.write_text("report.md", "\n\n".join(parts) + "\n")
    settings.store.write_json("results.json", {"environment": run.environment, "cells": run.cells})
    run.check_complete()


def without_numbers(
    cells: Cells, more: Sequence[str] = (), title: str = "Cells without numbers"
) -> str:
    """The section on cells that have an `outcome` in place of numbers, and more lines of it."""
    lines = [
        f"- {key}: {cell['outcome']} ({cell['message']})"
        for key, cell in cells.items()
        if cell.get("outcome")
    ]
    return f"## {title}\n\n" + ("\n".join([*lines, *more]) or "- none")


def environment(device: torch.device) -> dict[str, str | int]:
    """The circumstances of a run: versions, threads and the device's name."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": _device_name(device),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")  # of Linux, whose `platform` does not know it
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [""])[0] or platform.processor() or platform.machine()


def run_cells(
    title: str, cells: Sequence[Cell], store: ResultStore, fingerprint: str, only: str
) -> Cells:
    """Compute the cells that are not stored yet, storing each as soon as it is done.

    Args:
        title: What the progress bar, on standard error, calls this run.
        cells: The cells in the order of computation; their keys must differ.
        store: Where results are kept.
        fingerprint: What the results depend on besides their keys (`store.fingerprint`).
        only: Compute cells whose key contains this text only, "" for all; several processes may
            so share the work and the store.

    Returns:
        The value of each cell by its key, in the order of `cells`, without those that `only` left
        out and that are not stored.

    Raises:
        UnknownCellError: No key contains `only`; the message lists the keys.
        KeyboardInterrupt: The user stopped the run; the cells done so far stay stored.
    """
    keys = [cell.key for cell in cells]
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"cells with the same key: {', '.join(repeated)}")
    chosen = [cell for cell in cells if only in cell.key]
    if not chosen and only:
        parts = dict.fromkeys(part for key in keys for part in (key, *key.split()))
        message = unknown("cell", [only], [repr(key) for key in keys], near=parts)
        raise UnknownCellError(f"--only: {message} A part of a key will do.")
    stored = {key: store.get(key, fingerprint) for key in keys}
    values = {key: value for key, value in stored.items() if value is not None}
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
    return {key: values[key] for key in keys if key in values}


def _compute_missing(
    title: str, cells: Sequence[Cell], values: Cells, store: ResultStore, fingerprint: str,
    console: Console,
) -> None:  # fmt: skip
    """Compute cells, with a progress bar; without a terminal, a line per cell in its place."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[cell]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        done = sum(cell.key in values for cell in cells)
        bar = progress.add_task(title, total=len(cells), completed=done, cell="")
        for cell in cells:
            if cell.key in values:
                continue
            progress.update(bar, cell=cell.key)
            value = _not_tried(cell, store, fingerprint) or cell.compute()
            values[cell.key] = store.put(cell.key, fingerprint, value)
            progress.advance(bar)
            done += 1
            if not console.is_terminal:
                _say(console, f"{title}: {done}/{len(cells)} {cell.key}")


def _not_tried(cell: Cell, store: ResultStore, fingerprint: str) -> dict[str, Any] | None:
    """The result of a cell of which a smaller one had no numbers.

    The store is asked, since another process may have computed that one meanwhile.
    """
    for key, what in cell.smaller.items():
        outcome = (store.get(key, fingerprint) or {}).get("outcome")
        if outcome in (processes.DID_NOT_FIT, processes.DID_NOT_FINISH):
            return {"outcome": processes.NOT_TRIED, "message": f"{what} {outcome}"}
    return None


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
