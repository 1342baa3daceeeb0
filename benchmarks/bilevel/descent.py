"""Descent along gradients of whole trainings, some of which diverge, and the best of trials."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from typing_extensions import override

import odeopt
from odeopt.tools import tree
from odeopt.tools.types import PyTree

Candidate = TypeVar("Candidate")

LONGEST = 1.0
"""Gradients are cut to this norm: those of a training at the edge of stability are huge."""

RETURN = (
    "after a training that diverges, or whose gradient does, the descent goes on from the best so"
    " far in steps half as large."
)
RULE = f"Gradients longer than {LONGEST:g} are cut to that norm; {RETURN}"
"""The same for reports."""


UNSEEN = 10**9
"""Seeds of the trainings that choices are judged by begin here: no contender has seen them."""


Results = dict[str, list[dict[str, Any]]]
"""What cells say of each contender, by seed."""


class Evaluation(NamedTuple):
    """One training."""

    value: float  # the outer loss after it
    gradient: PyTree  # of it, like the variables
    spent: int  # what both cost (`benchmarks.budget`)


class Descent(NamedTuple):
    """The end of a descent."""

    best: Any  # the variables of the lowest value seen
    values: list[float]  # of all updates, infinite where a training or its gradient diverged
    spent: int  # in all
    path: list[Any]  # the variables after each update


def descend(
    start: PyTree, evaluate: Callable[[Any, int], Evaluation], updates: int, size: float,
    wasted: int, clip: float | None = LONGEST,
) -> Descent:  # fmt: skip
    """Adam, with the cuts and returns of `RULE`, or the returns only.

    Args:
        start: The variables, a pytree.
        evaluate: Their value and gradient at an update; it may raise `DivergenceError`.
        updates: How many.
        size: Adam's learning rate.
        wasted: What a training that diverges costs.
        clip: The norm that gradients are cut to; None to leave them.
    """
    trainings = _Trainings(start, evaluate)
    now = start
    while len(trainings.values) < updates:
        adam = partial(torch.optim.Adam, lr=size)
        loop = odeopt.outer.OuterLoop(
            trainings, {"variables": now}, adam, clip=clip, show_progress=False
        )
        try:
            loop.fit(updates - len(trainings.values))
            now = _copy(loop.learned["variables"])
        except odeopt.DivergenceError:
            trainings.values[-1] = float("inf")
            trainings.spent += wasted
            size /= 2
            now = trainings.best
    # an update begins where the one before it has ended
    path = [*trainings.begun, now][1:]
    return Descent(trainings.best, trainings.values, trainings.spent, path)


_copy = partial(tree.map_tensors, torch.clone)


class _Trainings(odeopt.outer.OuterObjective):
    """The outer loss as a function of the variables, with what was seen of it."""

    def __init__(self, start: PyTree, evaluate: Callable[[Any, int], Evaluation]) -> None:
        self.values: list[float] = []
        self.begun: list[Any] = []  # the variables before each update
        self.spent = 0
        self._start, self._evaluate = start, evaluate

    @property
    def best(self) -> PyTree:
        """The variables of the lowest value; the first where there is none."""
        seen = zip(self.values, self.begun, strict=True)
        return min(seen, key=lambda one: one[0], default=(0.0, self._start))[1]

    @override
    def gradient(self, learned: Mapping[str, Any], drawn: None) -> odeopt.outer.OuterGradient:
        now, update = _copy(learned["variables"]), len(self.values)
        self.begun.append(now)
        self.values.append(float("inf"))  # until the training has gone well
        training = self._evaluate(now, update)
        self.values[update] = training.value
        self.spent += training.spent
        return odeopt.outer.OuterGradient(training.value, {"variables": training.gradient})


class Outcome(NamedTuple):
    """What a contender has chosen."""

    choice: Any  # that of the lowest value that it saw
    spent: int  # in gradients (`benchmarks.budget`)
    details: dict[str, Any]  # for the results


def best_of(
    first: Candidate, choices: Iterable[Candidate], value: Callable[[Candidate, int], float]
) -> tuple[Candidate, list[float]]:
    """The choice of the lowest value, and all values, infinite where a training diverges.

    `value(choice, trial)` may raise `DivergenceError`; the first choice stands where all do.
    """
    best, lowest = first, float("inf")
    values: list[float] = []
    for trial, choice in enumerate(choices):
        try:
            values.append(value(choice, trial))
        except odeopt.DivergenceError:
            values.append(float("inf"))
        if values[-1] < lowest:
            best, lowest = choice, values[-1]
    return best, values
