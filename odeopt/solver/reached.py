"""Where a step leads, to be compared with where it led before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

MOST = 2**16
"""So many entries of a state are compared at most, evenly spread: a loss that has changed changes
nearly all of them, and a comparison is to cost next to nothing."""


class Reached(NamedTuple):
    """Some entries of a state."""

    entries: Tensor
    """Shape [..., n]."""
    of: int
    """They are spread over so many of its first entries."""

    def gap(self, y0: Tensor, y1: Tensor) -> Tensor:
        r"""The distance from y1 in units of what rounding explains: above 1 it does not.

        Allowed are $\sqrt\epsilon$ of the way from y0 to y1, and a few units in the last place of
        y1, which matter where a step is tiny. Shapes [..., d] to [...].
        """
        y0, y1 = (spread(y[..., : self.of]) for y in (y0, y1))
        eps, tiny = torch.finfo(y1.dtype).eps, torch.finfo(y1.dtype).tiny
        way, size = (torch.linalg.vector_norm(y, dim=-1) for y in (y1 - y0, y1))
        missed = torch.linalg.vector_norm(self.entries - y1, dim=-1)
        return missed / (eps**0.5 * way + 4 * eps * size + tiny)


def reached(state: Tensor) -> Reached:
    """What is compared of a state, or of as many of its first entries as are known."""
    return Reached(spread(state), state.shape[-1])


def spread(state: Tensor) -> Tensor:
    """The entries that are compared, a view."""
    return state[..., :: max(state.shape[-1] // MOST, 1)]
