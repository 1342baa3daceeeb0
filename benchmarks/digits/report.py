"""The report of the digits benchmark."""

from __future__ import annotations

from statistics import fmean, pstdev
from typing import Any

import torch

import odeopt
from benchmarks.digits import cells
from benchmarks.digits.cells import SIZES, Sizes
from benchmarks.harness import environment, markdown
from benchmarks.harness.curves import Curve, curves
from benchmarks.harness.plots import Labels
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import run_cells
from benchmarks.harness.store import fingerprint
from benchmarks.methods import LABELS


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)  # the problems are small: more threads only wait for each other
    sizes = SIZES[settings.preset]
    circumstances = environment.describe(settings.device)
    depends = {
        "revision": cells.REVISION,
        "odeopt": odeopt.__version__,
        "device": circumstances["device_name"],
        "sizes": repr(sizes),
    }
    results = run_cells(
        "digits", cells.cells(settings, sizes), settings.store, fingerprint(depends), settings.only
    )
    curves(
        settings.store.directory / "training.png",
        Labels("meta-training on digits", "meta-updates", "validation loss after adaptation"),
        [_curve(name, results[name]) for name in sizes.methods],
    )
    report = "\n\n".join([_head(settings, circumstances, sizes), _table(results, sizes)])
    settings.store.write_text("report.md", f"{report}\n\n![training](training.png)\n")
    settings.store.write_json("results.json", {"environment": circumstances, "cells": results})


def _table(results: dict[str, dict[str, Any]], sizes: Sizes) -> str:
    rows: list[list[Any]] = []
    for name in sizes.methods:
        cell = results[name]
        training = cell["training"]
        rows.append(
            [
                LABELS[name],
                *(f"{fmean(cell[k]):.3f} ± {pstdev(cell[k]):.3f}" for k in ("before", "after")),
                round(training["seconds"]),
                training["failed_tasks"],
                training["stopped"] or "",
            ]
        )
    headers = ["method", "before meta-training", "after", "training s", "failed tasks", "stopped"]
    return markdown.table(headers, rows)


def _curve(name: str, cell: dict[str, Any]) -> Curve:
    points = cell["training"]["curve"]
    return Curve(LABELS[name], [x for x, _ in points], [y for _, y in points])


def _head(settings: Settings, circumstances: dict[str, Any], sizes: Sizes) -> str:
    listed = "\n".join(f"- {name}: {value}" for name, value in circumstances.items())
    return f"""# Every method on few-shot digits

Made by `python -m benchmarks digits --preset {settings.preset.value}`, odeopt
{odeopt.__version__}. All numbers are in `results.json`.

{listed}

Tasks are {cells.WAYS} of the ten classes of scikit-learn's 8x8 digits, in random order, with
{cells.SHOTS} training images each; meta-training uses the first 1200 images, the meta-test the
others. Network 64-40-{cells.WAYS} (tanh), cross-entropy, float32; {sizes.updates} meta-updates of
{cells.META_BATCH} tasks with Adam, 1e-3; {sizes.steps} inner steps of {cells.LR} (MAML-1: 1;
iMAML-HF: 5 Newton steps). Accuracy on {sizes.test_tasks} new tasks (mean ± standard deviation),
after the method's own adaptation, from the random and the learned initialisation. The classes are
those of training: this shows that every method trains, not how well it learns new classes."""
