"""Ways to find ten images."""

from __future__ import annotations

from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.bilevel import descent
from benchmarks.bilevel.descent import Evaluated
from benchmarks.bilevel.distillation import problem
from benchmarks.bilevel.distillation.problem import Images, Training

UPDATE_SIZE = 0.03
"""The learning rate of pixels, labels and the logarithm of the learning rate (Adam)."""

RATES = (0.01, 2.0)
"""The range of learning rates for real images."""

FIRST_RATE = 0.2
GRID = 12
"""How many learning rates are tried for images that are not searched for."""


class Found(NamedTuple):
    """What a contender found, what it spent, and details for the results."""

    images: Images
    spent: int
    details: dict[str, Any]


def distil(training: Training, updates: int) -> Found:
    """Adam along the exact gradient through whole trainings, from the mean of each class.

    Every update has its own initialisation. The given images are those of the lowest loss seen.
    """

    def evaluate(leaves: list[Tensor], update: int) -> Evaluated:
        step = training.value_and_grad(Images(*leaves), update)
        return Evaluated(step.value, step.gradient, step.spent)

    begin = problem.means(training.split.train, log(FIRST_RATE))
    found = descent.descend(begin, evaluate, updates, UPDATE_SIZE, training.trial_cost())
    details = {"losses": found.values, "loss": min(found.values)}
    return Found(Images(*found.best), found.spent, details)


def search(training: Training, allowed: int, seed: int) -> Found:
    """The best of random draws of real images and learning rates, until the budget is spent."""
    random = Random(seed)
    real, lowest, trials = training.split.train, float("inf"), 0
    best = problem.draw(real, log(FIRST_RATE), 0)
    for trial in range(max(1, allowed // training.trial_cost())):
        log_lr = random.uniform(log(RATES[0]), log(RATES[1]))
        images = problem.draw(real, log_lr, random.randrange(2**31))
        value, trials = training.value(images, trial), trials + 1
        if value < lowest:
            lowest, best = value, images
    details = {"trials": trials, "loss": lowest}
    return Found(best, trials * training.trial_cost(), details)


def tune(training: Training, images: Images) -> Found:
    """The same images with the best of a grid of learning rates."""
    tried = torch.linspace(log(RATES[0]), log(RATES[1]), GRID).to(images.log_lr)
    values = [training.value(images._replace(log_lr=rate), 0) for rate in tried]
    best = min(range(GRID), key=values.__getitem__)
    chosen = images._replace(log_lr=tried[best])
    return Found(chosen, GRID * training.trial_cost(), {"loss": values[best]})
