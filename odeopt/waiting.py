"""Steps over which a task waits for others: nothing changes, whatever is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odeopt.grid import TimeGrid
from odeopt.noted import Noted, Scalars
from odeopt.theta import Theta


@dataclass(frozen=True, eq=False)
class Waiting:
    """The tasks that wait during one step.

    Attributes:
        tasks: whether each of them waits, shape [] or [tasks].
        length_counts: whether the gradient w.r.t. the length of the step is that of a step which
            begins to be made; else it is zero.
    """

    tasks: Tensor
    length_counts: bool

    def keep(self, before: Tensor, after: Tensor) -> Tensor:
        """The state before for tasks that wait, the state after for the others."""
        return torch.where(self.tasks[..., None], before, after)

    def pull(self, lam: Tensor, pulled: Noted) -> Noted:
        """The pull over the step; nothing but lam itself for tasks that wait."""
        own = Scalars.apart(pulled.scalars)
        zero, norm = torch.zeros_like(own.dt), torch.linalg.vector_norm(lam, dim=-1)
        counts = torch.isfinite(own.dt) & self.length_counts
        still = Scalars(zero, torch.where(counts, own.dt, zero), zero, zero, zero, norm)
        return Noted(
            self.keep(lam, pulled.lam),
            Theta(*(tuple(self._zero(leaf) for leaf in part) for part in pulled.theta)),
            self.keep(torch.stack(still, dim=-1), pulled.scalars),
        )

    def _zero(self, leaf: Tensor) -> Tensor:
        """A gradient, with zero for tasks that wait."""
        mask = self.tasks.reshape(self.tasks.shape + (1,) * (leaf.ndim - self.tasks.ndim))
        return torch.where(mask, torch.zeros_like(leaf), leaf)


class Waits:
    """Which tasks wait in which steps of a grid.

    Args:
        grid: the steps.
        moves_at_zero: whether a step of zero length may move something. Then tasks wait only
            where they make no more steps (`TimeGrid.stops`), else wherever the length is zero.
    """

    def __init__(self, grid: TimeGrid, moves_at_zero: bool) -> None:
        self._length_counts = not moves_at_zero
        self._tasks = _after_stops(grid) if moves_at_zero else grid.dt == 0
        self._some = _some(self._tasks, grid.steps)

    def between(self, start: int, stop: int) -> Waiting | None:
        """The tasks that wait between two states; None if none does."""
        if not all(self._some[start:stop]):
            return None
        return Waiting(self._tasks[..., start:stop].all(-1), self._length_counts)


def _after_stops(grid: TimeGrid) -> Tensor:
    if grid.stops is None:
        return torch.zeros_like(grid.dt, dtype=torch.bool)
    return torch.arange(grid.steps, device=grid.dt.device) >= grid.stops[..., None]


def _some(tasks: Tensor, steps: int) -> list[bool]:
    """Whether some task waits in each step (true where a transform hides the values)."""
    try:
        return tasks.reshape(-1, steps).any(0).tolist()
    except RuntimeError:
        return [True] * steps
