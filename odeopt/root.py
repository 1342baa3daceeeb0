"""A root of a decreasing scalar function, for many tasks at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 100
"""The most evaluations; the method needs about ten."""


def find_crossing(
    value: Callable[[Tensor], Tensor], high: Tensor, g_low: Tensor, g_high: Tensor, active: Tensor
) -> Tensor:
    r"""Where g comes down to zero between 0 and `high`, to rounding, by the Illinois method.

    Superlinear, and never outside the bracket.

    Args:
        value: g, from shape [] or [tasks] to the same.
        high: the upper end.
        g_low: g(0), positive for active tasks.
        g_high: g(high), zero or negative for active tasks.
        active: the tasks that matter; the others get `high`.

    References:
        Dowell and Jarratt 1971, "A modified regula falsi method for computing the root of an
        equation", BIT 11.
    """
    low, end = torch.zeros_like(high), high
    tiny = 4 * torch.finfo(high.dtype).eps
    done = ~active | (g_high == 0)
    was_above = torch.zeros_like(done)
    was_below = torch.zeros_like(done)
    for _ in range(LIMIT):
        if bool(done.all()):
            break
        slope = torch.where(done, -torch.ones_like(g_low), g_high - g_low)
        x = torch.where(done, high, (low * g_high - high * g_low) / slope)
        found = value(x)
        above, below = ~done & (found > 0), ~done & ~(found > 0)
        g_high = torch.where(above & was_above, g_high / 2, g_high)  # the end that stays behind
        g_low = torch.where(below & was_below, g_low / 2, g_low)
        low, g_low = torch.where(above, x, low), torch.where(above, found, g_low)
        high, g_high = torch.where(below, x, high), torch.where(below, found, g_high)
        was_above, was_below = above, below
        done = done | (high - low <= tiny * high) | (below & (found == 0))
    return torch.where(active, high, end)
