"""How gradients are compared with their targets, and methods with each other on the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from odeopt.testing import relative_error

LEVEL = 0.05
"""Below this a difference is called significant."""


def cosine(gradient: Tensor, target: Tensor) -> float:
    """That of the angle between two vectors."""
    return torch.nn.functional.cosine_similarity(gradient, target, dim=0).item()


def of_order_four(gradient: Callable[[int], Tensor], steps: int) -> tuple[Tensor, float]:
    """A gradient, by its number of steps, and its own error, which half the steps tell."""
    fine, coarse = gradient(steps), gradient(steps // 2)
    return fine, relative_error(coarse, fine) / 15


def p_value_above(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance of seeing the first so far above the second if they were alike.

    One-sided Wilcoxon signed-rank test over tasks; 1 where they are equal everywhere, or where a
    value is not finite in the second only.
    """
    # here, so that processes that measure do not load it
    from scipy import stats  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    a, b = np.asarray(first), np.asarray(second)
    known = np.isfinite(a) & np.isfinite(b)
    difference = (a - b)[known]
    if not known.any() or not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, alternative="greater").pvalue)
