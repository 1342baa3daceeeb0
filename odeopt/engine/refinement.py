"""The steps that a solver has put between the times of the user's grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odeopt.grid import TimeGrid


@dataclass(frozen=True, eq=False)
class Refinement:
    """Accepted steps as parts of the intervals of the user's grid.

    Attributes:
        times: start of each step, shape [n] or [tasks, n], float64.
        dt: length of each step.
        parents: the interval of the user's grid that each step belongs to, n integers.
        methods: what made each step, as `Solver.made_with` takes it, where the solver has a choice;
            else empty.
    """

    times: Tensor
    dt: Tensor
    parents: list[int]
    methods: tuple[int, ...] = ()

    def to_grid(self, grid: TimeGrid) -> TimeGrid:
        """The accepted steps as a grid."""
        end = grid.times[..., -1:]
        return TimeGrid(torch.cat([self.times, end], dim=-1), dt=self.dt)

    def pull(self, grid: TimeGrid, g_t: Tensor, g_dt: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients w.r.t. the user's grid: each step keeps its share of its interval."""
        parents = torch.tensor(self.parents, device=g_t.device)
        length = grid.dt[..., parents]
        safe = torch.where(length > 0, length, torch.ones_like(length))
        share = (self.dt / safe).to(g_t.dtype)
        lead = ((self.times - grid.times[..., parents]) / safe).to(g_t.dtype)
        zero = torch.zeros_like(grid.dt, dtype=g_t.dtype)
        return (
            zero.index_add(-1, parents, g_t),
            zero.index_add(-1, parents, share * g_dt + lead * g_t),
        )


def grid_index(parents: list[int], k: int) -> int | None:
    """The index in the user's grid of the state after k accepted steps, None between two."""
    if k == 0:
        return 0
    if k < len(parents) and parents[k] == parents[k - 1]:
        return None
    return parents[k - 1] + 1
