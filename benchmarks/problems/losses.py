"""Losses of predictions against targets, averaged over a batch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def half_mean_square(prediction: Tensor, y: Tensor) -> Tensor:
    """`0.5 * mean((prediction - y)^2)`, the inner and outer loss of the regression tasks.

    Raises:
        ValueError: The shapes differ, which would broadcast to all pairs.
    """
    if prediction.shape != y.shape:
        raise ValueError(f"predictions {tuple(prediction.shape)}, targets {tuple(y.shape)}")
    return 0.5 * (prediction - y).square().mean()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits [n, classes] against labels [n]."""
    return functional.cross_entropy(logits, y)
