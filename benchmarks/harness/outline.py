"""What benchmarks of one table or two have in common: compute the cells, then write the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

import odeopt
from benchmarks.harness import environment
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell, run_cells
from benchmarks.harness.store import fingerprint


class Run(NamedTuple):
    """A run that is complete.

    Attributes:
        name: The benchmark's.
        environment: The circumstances (`benchmarks.harness.environment`).
        cells: The value of each cell by its key.
    """

    name: str
    environment: dict[str, Any]
    cells: dict[str, dict[str, Any]]


def mark(settings: Settings, revision: int, sizes: object) -> str:
    """The fingerprint of stored cells.

    Args:
        settings: For the device.
        revision: Raised when what a cell computes changes, so that it is computed anew.
        sizes: The sizes of the run, by its `repr`.
    """
    found = environment.describe(settings.device)
    return fingerprint(
        {
            "revision": revision,
            "odeopt": odeopt.__version__,
            "torch": found["torch"],
            "device": found["device_name"],
            "sizes": repr(sizes),
        }
    )


def compute(settings: Settings, name: str, cells: Sequence[Cell], fingerprint: str) -> Run:
    """Compute the cells that are missing.

    Raises:
        IncompleteError: Cells are missing that `settings.only` left out.
    """
    circumstances = environment.describe(settings.device)
    values = run_cells(name, cells, settings.store, fingerprint, settings.only)
    return Run(name, circumstances, values)


def compute_alone(
    settings: Settings, name: str, revision: int, sizes: object, cells: Sequence[Cell],
    dtype: torch.dtype = torch.float32,
) -> Run:  # fmt: skip
    """Compute the cells that are missing, in this process, on one thread.

    The problems are small: more threads only wait for each other.
    """
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    return compute(settings, name, cells, mark(settings, revision, sizes))


def write(settings: Settings, title: str, run: Run, sections: Sequence[str]) -> None:
    """Write `report.md`, which begins with the circumstances, and `results.json`."""
    listed = "\n".join(f"- {name}: {value}" for name, value in run.environment.items())
    head = f"""# {title}

Made by `python -m benchmarks {run.name} --preset {settings.preset.value}`, odeopt
{odeopt.__version__}. All numbers are in `results.json`.

{listed}"""
    settings.store.write_text("report.md", "\n\n".join([head, *sections]).rstrip() + "\n")
    found = {"environment": run.environment, "cells": run.cells}
    settings.store.write_json("results.json", found)
