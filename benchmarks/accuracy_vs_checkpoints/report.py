"""The whole suite: cells, sections, report."""

from __future__ import annotations

import torch

from benchmarks.accuracy_vs_checkpoints import horizons, precision, registered, tables
from benchmarks.accuracy_vs_checkpoints.cases import SIZES, Sizes
from benchmarks.harness import outline
from benchmarks.harness.outline import Cell
from benchmarks.harness.registry import Settings

NAME = "accuracy-vs-checkpoints --only checkpoints"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = _cells(settings, sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen, torch.float64)
    results = done.cells
    sections = [
        tables.section_4(results, sizes),
        tables.section_5(results, settings, sizes),
        horizons.horizon_section(results, sizes),
        horizons.input_section(results, settings, sizes),
        precision.section(results, settings, sizes),
        *registered.sections(results),
    ]
    outline.write(settings, "Accuracy against checkpoints", done, sections)


def _cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    return [
        *tables.cells_4(settings, sizes),
        *tables.cells_5(settings, sizes),
        *registered.cells(settings),
        *precision.cells(settings, sizes),
        *horizons.input_cells(settings, sizes),
        *horizons.horizon_cells(settings, sizes),
    ]
