"""The report of the benchmark."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import budget
from benchmarks.bilevel import descent
from benchmarks.bilevel.distillation import cells, contenders, problem
from benchmarks.bilevel.distillation.cells import CONTEST, REFERENCES
from benchmarks.bilevel.distillation.sizes import SIZES, Sizes
from benchmarks.harness import markdown, outline
from benchmarks.harness.curves import Curve, curves
from benchmarks.harness.outline import Run
from benchmarks.harness.plots import Labels, save
from benchmarks.harness.registry import Settings

NAME = "bilevel --only distillation"
REVISION = 2
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

ROWS = {
    "random": (REFERENCES, f"random real images, tuned rate (mean of {cells.DRAWS} draws)"),
    "searched": (CONTEST, "the best of random real images and rates, same budget"),
    "means": (REFERENCES, "the mean image of each class, tuned rate"),
    "distilled": (CONTEST, "synthetic images, labels and rate by the gradient"),
}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells.cells(settings, sizes)
    done = outline.compute_alone(settings, NAME, REVISION, sizes, chosen)
    first = done.cells[cells.key(0, CONTEST)]["distilled"]
    folder = settings.store.directory
    curves(
        folder / "losses.png",
        Labels("images distilled", "updates", "loss of the real images after training"),
        [Curve("one initialisation each", range(len(first["losses"])), first["losses"])],
    )
    picture(folder / "images.png", first["images"])
    plots = "![losses](losses.png)\n![synthetic images](images.png)"
    sections = [_head(sizes), _table(done, sizes), _verdict(done, sizes), plots]
    outline.write(settings, "Ten images in place of a thousand", done, sections)


def picture(path: Path, images: dict[str, Any]) -> Path:
    """Draw the images, each under its most likely label and that label's probability."""
    figure = Figure(figsize=(7.6, 3.6), dpi=120, layout="constrained")
    for index, axes in enumerate(figure.subplots(2, 5).flat):
        chances = images["labels"][index]
        likely = max(range(len(chances)), key=chances.__getitem__)
        axes.imshow(np.reshape(images["x"][index], (8, 8)), cmap="gray_r")
        axes.set_title(f"{likely} ({chances[likely]:.2f})", fontsize="small")
        axes.set_axis_off()
    return save(figure, path)


def _of(run: Run, name: str, sizes: Sizes) -> list[dict[str, Any]]:
    return [run.cells[cells.key(seed, ROWS[name][0])][name] for seed in range(sizes.seeds)]


def _table(run: Run, sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = []
    for name, (_, label) in ROWS.items():
        found = _of(run, name, sizes)
        accuracies = [cell["accuracy"] for cell in found]
        spread = f" ± {pstdev(accuracies):.3f}" if len(found) > 1 else ""
        rows.append([
            label, f"{fmean(accuracies):.3f}{spread}", f"{fmean(c['loss'] for c in found):.3f}",
            f"{found[0]['lr']:.3g}" if "lr" in found[0] else "-",
            f"{fmean(cell['spent'] for cell in found):.0f}",
        ])  # fmt: skip
    headers = ["ten images", "test accuracy", "loss of real images seen", "learning rate", "budget"]
    return markdown.table(headers, rows).rstrip()


def _verdict(run: Run, sizes: Sizes) -> str:
    found = {name: fmean(c["accuracy"] for c in _of(run, name, sizes)) for name in ROWS}
    rival = max(found.keys() - {"distilled"}, key=lambda name: found[name])
    ours, theirs = found["distilled"], found[rival]
    compared = "higher" if ours > theirs else "not higher"
    return (
        f"The test accuracy with the synthetic images ({ours:.3f}) is {compared} than the best of"
        f" the others ({theirs:.3f}: {ROWS[rival][1]})."
    )


def _head(sizes: Sizes) -> str:
    return f"""A network 64-32-10 (tanh, float32) is trained on ten images, one per class, by
{sizes.steps} steps of gradient descent on all of them. Their pixels, the logits of their labels and
the logarithm of the learning rate are found by {sizes.updates} updates (Adam,
{contenders.UPDATE_SIZE:g}) along the exact gradient of the loss of {sizes.real} real training
images after a whole training ({problem.SLOTS} kept states, by Binomial), from the mean image of
each class; every update has its own initialisation. {descent.RULE}

The others train on ten real images or on class means, with labels of probability 0.94 on the right
class. Their learning rate is the best of {contenders.GRID} between {contenders.RATES[0]:g} and
{contenders.RATES[1]:g}; the search draws images and learning rates together until it has spent what
the gradient has, and keeps those of the lowest loss of the real images. {budget.RULE} Here a
minibatch is ten images, and the loss of the real images counts as so many more (a third where it is
only evaluated).

Test accuracies are means over {sizes.retrainings} trainings from initialisations that no contender
has seen, on digits by other writers, and over draws of the real images ({sizes.seeds}; ± standard
deviation)."""
