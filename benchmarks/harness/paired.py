"""Comparing two methods on the same tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

LEVEL = 0.05
"""Below this a difference is called significant."""


def p_value_above(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance of seeing the first so far above the second if they were alike.

    One-sided Wilcoxon signed-rank test over tasks; 1 where they are equal everywhere, or where a
    value is not finite in the second only.
    """
    a, b = np.asarray(first), np.asarray(second)
    known = np.isfinite(a) & np.isfinite(b)
    difference = (a - b)[known]
    if not known.any() or not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, alternative="greater").pvalue)
