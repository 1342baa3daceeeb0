"""The report of the collaborative-filtering benchmark."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import torch

from benchmarks.collaborative_filtering import cells, sections, text
from benchmarks.collaborative_filtering.sections import Results
from benchmarks.collaborative_filtering.sizes import Setting, Sizes, resolve
from benchmarks.harness import curves, environment, outline
from benchmarks.harness.curves import Curve
from benchmarks.harness.plots import Labels
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.runner import check_complete, run_cells
from benchmarks.methods import LABELS


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)  # the problems are small: more threads only wait for each other
    sizes = resolve(settings.preset, settings.data)
    circumstances = environment.describe(settings.device)
    mark = outline.mark(settings, cells.REVISION, sizes)
    asked = cells.cells(settings, sizes)
    results = run_cells(
        "collaborative-filtering", asked, settings.store, mark, settings.only,
        gaps=True,
    )  # fmt: skip
    parts = [text.head(settings.preset, circumstances, sizes)]
    sizes, missing = _complete(results, sizes)
    if not sizes.settings:
        check_complete(results, asked)
    if missing:
        parts.append(f"**Not run:** {'; '.join(missing)}.")
    if settings.preset is Preset.PAPER:
        parts.append(sections.overview(results, sizes))
    for setting in sizes.settings:
        parts.append(sections.section(results, setting, sizes, settings.preset))
        parts.append(f"![held-out error]({_plot(results, settings, setting, sizes)})")
    settings.store.write_text("report.md", "\n\n".join(parts) + "\n")
    settings.store.write_json("results.json", {"environment": circumstances, "cells": results})
    check_complete(results, asked)


def _complete(results: Results, sizes: Sizes) -> tuple[Sizes, list[str]]:
    """The settings with a result of every method, and the names of the others."""
    names = (cells.BASELINES, *sizes.methods)
    done = [
        setting
        for setting in sizes.settings
        if all(cells.key(setting, name) in results for name in names)
    ]
    missing = [setting.name for setting in sizes.settings if setting not in done]
    return replace(sizes, settings=tuple(done)), missing


def _plot(results: Results, settings: Settings, setting: Setting, sizes: Sizes) -> str:
    """Draws the held-out error along the descent; the name of the file."""
    lines = [
        Curve(LABELS[name], found["steps"], found["mean"])
        for name in sizes.methods
        for found in (results[cells.key(setting, name)]["curve"],)
    ]
    end = lines[0].x[-1]
    biases = fmean(results[cells.key(setting, cells.BASELINES)]["errors"]["biases"])
    lines.append(Curve("biases, no network", [0, end], [biases, biases]))
    labels = Labels(setting.name, "steps of gradient descent", "held-out nRMSE")
    name = f"{setting.name.replace(' ', '-')}.png"
    curves.curves(settings.store.directory / name, labels, lines)
    return name
