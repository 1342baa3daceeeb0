"""What the estimate of an error leaves out: the terms of higher order."""

from __future__ import annotations

import math

from odeopt.result import ErrorEstimate

NEXT_TERM, NEXT_TERM_OF_EULER = 15.0, 5.0
"""The terms that an estimate leaves out, as a share of it and in units of the gap: they were up to
4.3 on random quadratic problems, and 14 for a small network by a method of order 2."""


def size_of(error: ErrorEstimate) -> float:
    """The larger of the errors w.r.t. params and hparams; infinite if it is not known."""
    size = max(error.params, error.hparams)
    return size if math.isfinite(size) else math.inf


def bound_of(error: ErrorEstimate) -> float:
    """The error with room for the terms that its estimate leaves out."""
    return size_of(error) * (1 + next_term_of(error.order) * error.gap)


def next_term_of(order: int) -> float:
    """How much the next term counts for a method of an order."""
    return NEXT_TERM_OF_EULER if order == 1 else NEXT_TERM


def leading(bound: float, spread: float) -> float:
    r"""The error whose bound, $x\,(1 + \text{spread}\,x)$, is a given one."""
    return 2 * bound / (1 + math.sqrt(1 + 4 * spread * bound))
