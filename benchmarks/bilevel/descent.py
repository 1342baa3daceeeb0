"""Descent along gradients through whole trainings, some of which diverge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

import odeopt

LONGEST = 1.0
"""Gradients are cut to this norm: those of a training at the edge of stability are huge."""

RULE = (
    f"Gradients longer than {LONGEST:g} are cut to that norm; after a training that diverges, or"
    " whose gradient does, the descent goes on from the best so far in steps half as large."
)
"""The same for reports."""


class Evaluated(NamedTuple):
    """One training.

    Attributes:
        value: The outer loss after it.
        gradient: Of it.
        spent: What both cost (`benchmarks.budget`).
    """

    value: float
    gradient: Sequence[Tensor]
    spent: int


class Descent(NamedTuple):
    """What was found.

    Attributes:
        best: The variables of the lowest value seen.
        values: Of all updates, infinite where a training or its gradient diverged.
        spent: In all.
    """

    best: list[Tensor]
    values: list[float]
    spent: int


def descend(
    start: Sequence[Tensor], evaluate: Callable[[list[Tensor], int], Evaluated], updates: int,
    size: float, wasted: int,
) -> Descent:  # fmt: skip
    """Adam, with the cuts and returns of `RULE`.

    Args:
        start: The variables.
        evaluate: Their value and gradient at an update; it may raise `DivergenceError`.
        updates: How many.
        size: Adam's learning rate.
        wasted: What a training that diverges costs.
    """
    trainings = _Trainings(start, evaluate)
    while len(trainings.values) < updates:
        adam = partial(torch.optim.Adam, lr=size)
        loop = odeopt.outer.OuterLoop(
            trainings, {"variables": trainings.best}, adam, clip=LONGEST, show_progress=False
        )
        try:
            loop.fit(updates - len(trainings.values))
        except odeopt.DivergenceError:
            trainings.note_divergence(wasted)
            size /= 2
    return Descent(trainings.best, trainings.values, trainings.spent)


class _Trainings(odeopt.outer.OuterObjective):
    """The outer loss as a function of the variables, with what was seen of it."""

    def __init__(
        self, start: Sequence[Tensor], evaluate: Callable[[list[Tensor], int], Evaluated]
    ) -> None:
        self.best, self.lowest = list(start), float("inf")
        self.values: list[float] = []
        self.spent = 0
        self._evaluate = evaluate

    @override
    def gradient(self, learned: Mapping[str, Any], drawn: None) -> odeopt.outer.OuterGradient:
        now = [leaf.clone() for leaf in learned["variables"]]
        found = self._evaluate(now, len(self.values))
        self.values.append(found.value)
        self.spent += found.spent
        if found.value < self.lowest:
            self.best, self.lowest = now, found.value
        return odeopt.outer.OuterGradient(found.value, {"variables": list(found.gradient)})

    def note_divergence(self, cost: int) -> None:
        """A training has diverged, at some cost."""
        self.values.append(float("inf"))
        self.spent += cost
