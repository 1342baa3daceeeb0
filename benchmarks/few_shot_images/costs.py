"""What a meta-update costs, in one currency for all methods."""

from __future__ import annotations

import odeopt
from benchmarks import budget

RULE = (
    "The currency is the gradient on one task's training pictures. A Hessian-vector product counts"
    f" as {budget.HVP} of them; the gradient of the validation loss as one per training picture's"
    " worth of validation pictures; Reptile's gradients are on both sets. COMLN's flow happens in"
    " the outputs, so that a meta-update costs it one and a third gradients on the training"
    " pictures, and one on the validation pictures; ANIL's gradients count in full, although the"
    " last layer's part of one is cheaper. Replayed and rejected steps count."
)
"""The same for reports."""


def of_update(method: str, stats: odeopt.Stats, outer: float) -> float:
    """Gradient evaluations per task of one meta-update.

    Args:
        method: A name in `odeopt.METHODS`.
        stats: What the method reports.
        outer: Validation pictures per training picture.
    """
    if method == "comln":  # the features once without a gradient, a third, and once with it
        return 4 / 3 + outer
    inner = budget.spent(stats)
    return inner * (1 + outer) if method == "reptile" else inner + outer
