"""Descent along gradients through whole trainings, some of which diverge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
    best, lowest, spent = _copy(start), float("inf"), 0
    values: list[float] = []
    leaves, adam = _begin(best, size)
    for update in range(updates):
        now = _copy(leaves)
        try:
            found = evaluate(now, update)
        except odeopt.DivergenceError:
            values.append(float("inf"))
            spent, size = spent + wasted, size / 2
            leaves, adam = _begin(best, size)
            continue
        values.append(found.value)
        spent += found.spent
        if found.value < lowest:
            best, lowest = now, found.value
        for leaf, along in zip(leaves, found.gradient, strict=True):
            leaf.grad = along.to(leaf)
        torch.nn.utils.clip_grad_norm_(leaves, LONGEST)
        adam.step()
    return Descent(best, values, spent)


def _copy(leaves: Sequence[Tensor]) -> list[Tensor]:
    return [leaf.detach().clone() for leaf in leaves]


def _begin(variables: list[Tensor], size: float) -> tuple[list[Tensor], torch.optim.Adam]:
    leaves = [leaf.requires_grad_() for leaf in _copy(variables)]
    return leaves, torch.optim.Adam(leaves, lr=size)
