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
