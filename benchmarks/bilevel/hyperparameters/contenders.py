"""Ways to choose hyperparameters with the same budget."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import budget
from benchmarks.bilevel import descent
from benchmarks.bilevel.descent import Evaluated
from benchmarks.bilevel.hyperparameters.training import KNOTS, MODEL, RULES, Choice, Training

UPDATE_SIZE = 0.2
"""The first learning rate of the logarithms (Adam)."""


class Found(NamedTuple):
    """What a contender found.

    Attributes:
        choice: The hyperparameters of the lowest validation loss that it saw.
        spent: In gradients (`benchmarks.budget`).
        details: For the results.
    """

    choice: Choice
    spent: int
    details: dict[str, Any]


def by_gradient(training: Training, updates: int, per_entry: bool) -> Found:
    """Adam along the exact gradient through whole trainings, from the middle of the ranges.

    Every update has its own initialisation and minibatches.

    Args:
        training: The training.
        updates: How many.
        per_entry: Whether each entry of a parameter has its own weight decay, or each tensor.
    """
    begin = middle(training, per_entry)

    def choice(leaves: list[Tensor]) -> Choice:
        knots, *decays = leaves
        return Choice(knots, dict(zip(begin.decays, decays, strict=True)))

    def evaluate(leaves: list[Tensor], update: int) -> Evaluated:
        value, gradient, stats = training.value_and_grad(choice(leaves), update)
        return Evaluated(value, _leaves(gradient), budget.spent(stats))

    found = descent.descend(_leaves(begin), evaluate, updates, UPDATE_SIZE, training.steps)
    details = {"validation losses": found.values, "validation loss": min(found.values)}
    return Found(choice(found.best), found.spent, details)


def by_search(
    training: Training, allowed: int, draw: Callable[[Training, Random], Choice], seed: int
) -> Found:
    """Random search until the budget is spent; at least one trial."""
    random = Random(seed)
    best, lowest = middle(training, per_entry=False), float("inf")
    values: list[float] = []
    for trial in range(max(1, allowed // training.steps)):
        choice = draw(training, random)
        values.append(training.validate(choice, trial))
        if values[-1] < lowest:
            lowest, best = values[-1], choice
    details = {"validation losses": values, "validation loss": lowest, "trials": len(values)}
    return Found(best, len(values) * training.steps, details)


def draw_few(training: Training, random: Random) -> Choice:
    """Three numbers: the first and the last learning rate, and one weight decay for all."""
    rates, decays = _ranges(training)
    first, last, decay = random.uniform(*rates), random.uniform(*rates), random.uniform(*decays)
    return _choice(training, torch.linspace(first, last, KNOTS), lambda _: decay)


def draw_all(training: Training, random: Random) -> Choice:
    """All knots, and a weight decay for each parameter tensor."""
    rates, decays = _ranges(training)
    knots = torch.tensor([random.uniform(*rates) for _ in range(KNOTS)])
    return _choice(training, knots, lambda _: random.uniform(*decays))


def middle(training: Training, per_entry: bool) -> Choice:
    """The middle of the ranges of the logarithms."""
    rates, decays = (sum(ends) / 2 for ends in _ranges(training))
    found = _choice(training, torch.full((KNOTS,), rates), lambda _: decays)
    if not per_entry:
        return found
    start = training.start(0)
    return found._replace(decays={k: torch.full_like(start[k], decays) for k in start})


def _ranges(training: Training) -> tuple[tuple[float, float], tuple[float, float]]:
    rule = RULES[training.rule]
    rates, decays = ((log(low), log(high)) for low, high in (rule.rates, rule.decays))
    return rates, decays


def _choice(training: Training, knots: Tensor, decay: Callable[[str], float]) -> Choice:
    like = training.split.train.x
    return Choice(knots, {name: torch.tensor(decay(name)).to(like) for name in MODEL.init(0)})


def _leaves(choice: Choice) -> list[Tensor]:
    return [choice.knots, *choice.decays.values()]
