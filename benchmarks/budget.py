"""One currency for methods that use gradients of training and for those that only train."""

from __future__ import annotations

import odeopt

HVP = 3
"""Gradients that a Hessian-vector product is weighed as.

A gradient passes through the network three times (forward, and twice the work backward); its
derivative in one direction takes the gradient and as much work again twice over: nine passes.
"""

RULE = (
    "Budgets are counted in gradients of one minibatch, replayed ones included; a Hessian-vector"
    f" product counts as {HVP} of them."
)
"""The same for reports."""


def spent(stats: odeopt.Stats) -> int:
    """What a solve or a meta-gradient cost."""
    return stats.gradient_evaluations + HVP * stats.hvps


UPDATE_RULE = (
    "The currency is the gradient on one task's training pictures. A Hessian-vector product counts"
    f" as {HVP} of them; the gradient of the validation loss as one per training picture's"
    " worth of validation pictures; Reptile's gradients are on both sets. COMLN's flow happens in"
    " the outputs, so that a meta-update costs it one and a third gradients on the training"
    " pictures, and one on the validation pictures; ANIL's gradients count in full, although the"
    " last layer's part of one is cheaper. Replayed and rejected steps count."
)
"""The same for reports."""


def of_update(method: str, stats: odeopt.Stats, outer: float) -> float:
    """Gradient evaluations per task of one meta-update.

    There are `outer` validation pictures per training picture.
    """
    if method == "comln":  # the features once without a gradient, a third, and once with it
        return 4 / 3 + outer
    inner = spent(stats)
    return inner * (1 + outer) if method == "reptile" else inner + outer
