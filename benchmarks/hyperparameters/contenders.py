"""Ways to choose hyperparameters with the same budget."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks import budget
from benchmarks.hyperparameters.training import KNOTS, MODEL, RULES, Choice, Training

UPDATE_SIZE = 0.2
"""The first learning rate of the logarithms (Adam); halved whenever a training diverges."""


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

    Every update has its own initialisation and minibatches. After a training that diverges it
    goes on from the best hyperparameters so far, in steps half as large.

    Args:
        training: The training.
        updates: How many.
        per_entry: Whether each entry of a parameter has its own weight decay, or each tensor.
    """
    choice = best = middle(training, per_entry)
    lowest, size, spent = float("inf"), UPDATE_SIZE, 0
    values: list[float] = []
    adam = _Adam(choice, size)
    for update in range(updates):
        try:
            value, gradient, stats = training.value_and_grad(choice, update)
        except odeopt.DivergenceError:
            values.append(float("inf"))
            spent += training.steps
            size /= 2
            choice, adam = best, _Adam(best, size)
            continue
        spent += budget.spent(stats)
        values.append(value)
        if value < lowest:
            lowest, best = value, choice
        choice = adam.step(gradient)
    details = {"validation losses": values, "validation loss": lowest}
    return Found(best, spent, details)


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


class _Adam:
    """Adam on a `Choice`."""

    def __init__(self, start: Choice, size: float) -> None:
        self._start = start
        self._leaves = [leaf.clone().requires_grad_() for leaf in _leaves(start)]
        self._adam = torch.optim.Adam(self._leaves, lr=size)

    def step(self, gradient: Choice) -> Choice:
        """The next choice."""
        for leaf, found in zip(self._leaves, _leaves(gradient), strict=True):
            leaf.grad = found.to(leaf)
        self._adam.step()
        knots, *decays = (leaf.detach().clone() for leaf in self._leaves)
        return Choice(knots, dict(zip(self._start.decays, decays, strict=True)))


def _leaves(choice: Choice) -> list[Tensor]:
    return [choice.knots, *choice.decays.values()]
