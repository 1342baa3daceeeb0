"""The cells: what is found, and how well networks trained on it do on other writers' digits."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

import torch

from benchmarks.bilevel.distillation import contenders, problem
from benchmarks.bilevel.distillation.contenders import Found
from benchmarks.bilevel.distillation.problem import MODEL, Images, Training
from benchmarks.bilevel.distillation.sizes import Sizes
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems.classification import accuracy, split_digits

UNSEEN = 10**9
"""Seeds of the retrainings begin here: no contender has seen them."""

CONTEST, REFERENCES = "contest", "references"
DRAWS = 5
"""Random draws of ten real images, each with a tuned learning rate."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """Two cells per seed."""
    return [
        Cell(key(seed, part), partial(compute, settings, sizes, seed))
        for seed in range(sizes.seeds)
        for part, compute in ((REFERENCES, _references), (CONTEST, _contest))
    ]


def key(seed: int, part: str) -> str:
    """The key of a cell."""
    return f"seed={seed} {part}"


def _training(settings: Settings, sizes: Sizes, seed: int) -> Training:
    split = split_digits(sizes.real, 0, seed).to(settings.device, torch.float32)
    return Training(split, sizes.steps, sizes.compile)


def _references(settings: Settings, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Real images, random or mean, with tuned learning rates."""
    training = _training(settings, sizes, seed)
    real = training.split.train
    drawn = [contenders.tune(training, problem.draw(real, 0.0, draw)) for draw in range(DRAWS)]
    judged = [judge(training, found, sizes) for found in drawn]
    mean = {name: fmean(one[name] for one in judged) for name in ("accuracy", "loss", "spent")}
    return {
        "random": mean,
        "means": judge(training, contenders.tune(training, problem.means(real, 0.0)), sizes),
    }


def _contest(settings: Settings, sizes: Sizes, seed: int) -> dict[str, Any]:
    """The gradient, and a search that is given what it has spent."""
    training = _training(settings, sizes, seed)
    distilled = contenders.distil(training, sizes.updates)
    searched = contenders.search(training, distilled.spent, seed)
    return {
        "distilled": judge(training, distilled, sizes) | {"images": plain(distilled.images)},
        "searched": judge(training, searched, sizes),
    }


def judge(training: Training, found: Found, sizes: Sizes) -> dict[str, Any]:
    """The mean test accuracy of networks from new initialisations, and what was found."""
    accuracies = [
        accuracy(MODEL, training.train(found.images, UNSEEN + index), training.split.test)
        for index in range(sizes.retrainings)
    ]
    return {
        "accuracy": fmean(accuracies), "lr": found.images.log_lr.exp().item(),
        "spent": found.spent, **found.details,
    }  # fmt: skip


def plain(images: Images) -> dict[str, list[list[float]]]:
    """Pixels and the labels' probabilities, as lists."""
    return {"x": images.x.tolist(), "labels": images.labels.softmax(-1).tolist()}
