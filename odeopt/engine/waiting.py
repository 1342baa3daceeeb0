"""Steps over which a task waits for others: nothing changes, whatever is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odeopt.engine.pulled import Noted, Scalars
from odeopt.errors import CompatibilityError
from odeopt.grid import TimeGrid
from odeopt.solver.dynamics import Theta


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
    """Which tasks wait in which steps.

    Args:
        tasks: whether each of them waits, shape [steps] or [tasks, steps].
        length_counts: see `Waiting`.
    """

    def __init__(self, tasks: Tensor, length_counts: bool) -> None:
        self._tasks, self._length_counts = tasks, length_counts
        self._some = _some(tasks, tasks.shape[-1])

    @classmethod
    def of(cls, grid: TimeGrid, moves_at_zero: bool) -> Waits:
        """Those of a grid.

        If a step of zero length may move something, tasks wait only where they make no more steps
        (`TimeGrid.stops`), else wherever the length is zero.
        """
        return cls(~made(grid) if moves_at_zero else grid.dt == 0, not moves_at_zero)

    def between(self, start: int, stop: int) -> Waiting | None:
        """The tasks that wait between two states; None if none does."""
        if not all(self._some[start:stop]):
            return None
        return Waiting(self._tasks[..., start:stop].all(-1), self._length_counts)


def made(grid: TimeGrid) -> Tensor:
    """Whether each step of a grid is made (`TimeGrid.stops`), shape [steps] or [tasks, steps]."""
    if grid.stops is None:
        return torch.ones_like(grid.dt, dtype=torch.bool)
    return torch.arange(grid.steps, device=grid.dt.device) < grid.stops[..., None]


def left_out(made: Tensor, first_step: Callable[[int], int]) -> Tensor:
    """Which steps an adjoint leaves out, where each task counts the steps that it makes.

    Args:
        made: whether each step is made, shape [steps] or [tasks, steps].
        first_step: of so many steps, the first that the adjoint differentiates.

    Raises:
        CompatibilityError: if a transform hides the values.
    """
    try:
        counts: list[int] = made.sum(-1).reshape(-1).tolist()
    except RuntimeError as error:
        raise CompatibilityError(
            "how many steps each task makes is hidden by torch.func.vmap, but the adjoint counts"
            " them: pass tasks=True in place of vmap around the solve, or use DiscreteAdjoint()."
        ) from error
    firsts = torch.tensor([first_step(count) for count in counts], device=made.device)
    before = made.cumsum(-1) - made.long()
    return before < firsts.reshape(made.shape[:-1])[..., None]


def _some(tasks: Tensor, steps: int) -> list[bool]:
    """Whether some task waits in each step (true where a transform hides the values)."""
    try:
        return tasks.reshape(-1, steps).any(0).tolist()
    except RuntimeError:
        return [True] * steps
