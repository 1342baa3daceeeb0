"""The whole suite: cells, sections, report."""

from __future__ import annotations

from typing import Any

import torch

import odeopt
from benchmarks.accuracy_vs_checkpoints import (
    diagrams,
    fields,
    horizons,
    inputs,
    precision,
    rules,
    table4,
    table5,
)
from benchmarks.accuracy_vs_checkpoints.sizes import SIZES, Sizes
from benchmarks.harness import environment
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell, run_cells
from benchmarks.harness.store import fingerprint

TITLE = "accuracy-vs-checkpoints"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # the problems are small: more threads only wait for each other
    sizes = SIZES[settings.preset]
    circumstances = environment.describe(settings.device)
    depends = {
        "revision": REVISION,
        "odeopt": odeopt.__version__,
        "torch": circumstances["torch"],
        "device": circumstances["device_name"],
        "sizes": repr(sizes),
    }
    cells = _cells(settings, sizes)
    results = run_cells(TITLE, cells, settings.store, fingerprint(depends), settings.only)
    sections = [
        table4.section(results, sizes),
        table5.section(results, settings, sizes),
        horizons.section(results, sizes),
        inputs.section(results, settings, sizes),
        diagrams.section(results, settings, sizes),
        fields.section(results),
        rules.section(results),
    ]
    head = _head(settings, circumstances)
    settings.store.write_text("report.md", "\n\n".join([head, *sections]) + "\n")
    settings.store.write_json("results.json", {"environment": circumstances, "cells": results})


def _cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    return [
        *table4.cells(settings, sizes),
        *table5.cells(settings, sizes),
        *fields.cells(settings),
        *rules.cells(settings),
        *precision.cells(settings, sizes),
        *inputs.cells(settings, sizes),
        *horizons.cells(settings, sizes),
    ]


def _head(settings: Settings, circumstances: dict[str, Any]) -> str:
    listed = "\n".join(f"- {name}: {value}" for name, value in circumstances.items())
    return (
        "# Accuracy against checkpoints\n\n"
        "Made by `python -m benchmarks accuracy-vs-checkpoints"
        f" --preset {settings.preset.value}`, odeopt {odeopt.__version__}. All numbers are in"
        f" `results.json`.\n\n{listed}"
    )
