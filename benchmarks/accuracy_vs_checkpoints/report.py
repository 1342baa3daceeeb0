"""The whole suite: cells, sections, report."""

from __future__ import annotations

import torch

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
from benchmarks.harness import outline
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell

NAME = "accuracy-vs-checkpoints --only checkpoints"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = _cells(settings, sizes)
    done = outline.compute_alone(settings, NAME, REVISION, sizes, chosen, torch.float64)
    results = done.cells
    sections = [
        table4.section(results, sizes),
        table5.section(results, settings, sizes),
        horizons.section(results, sizes),
        inputs.section(results, settings, sizes),
        diagrams.section(results, settings, sizes),
        fields.section(results),
        rules.section(results),
    ]
    outline.write(settings, "Accuracy against checkpoints", done, sections)


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
