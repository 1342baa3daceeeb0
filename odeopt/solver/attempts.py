"""The attempts of one solve: what it asks a solver that chooses its own steps."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from odeopt.solver.step_control import PIController


class Attempt(NamedTuple):
    """One tried step."""

    y: Tensor
    """The new state, shape [d]."""
    error: Tensor
    """The root mean square of the estimated error over the tolerance; accepted if at most 1."""
    slope: Tensor
    """The velocity at the new state, reused by the next attempt."""


class Evaluations(Protocol):
    """What attempts may evaluate, on all tasks at once; each is counted."""

    def velocity(self, t: Tensor, y: Tensor) -> Tensor:
        """The velocity; one gradient."""
        ...

    def attempt(self, method: int | None, dt: Tensor, y: Tensor) -> Attempt:
        """Try a step from where the solve is with a method of the solver, see `Solver.made_with`.

        Raises:
            StepLimitError: if this is one attempt too many.
        """
        ...


class Point:
    """Where a solve is; shapes [] or [tasks], [d] or [tasks, d]."""

    def __init__(self, t: Tensor, slope: Tensor) -> None:
        self.t, self.slope = t, slope
        self.failed = torch.zeros_like(t, dtype=torch.bool)


class Attempts:
    """Tries steps with one method; a solver with a choice has attempts of its own.

    They are made anew for each solve, so that they may carry what they learn on the way.

    Attributes:
        method: what made the last attempt, as `Solver.made_with` takes it.
    """

    method: int | None = None

    def __init__(self, evaluate: Evaluations, controller: PIController) -> None:
        self._evaluate, self._controller = evaluate, controller

    def start(self, point: Point, y0: Tensor) -> None:
        """Look at where the solve begins."""

    def longest(self, point: Point) -> Tensor | None:
        """The longest step that may be tried next, shape [] or [tasks]; None without a bound."""
        del point
        return None

    def attempt(self, point: Point, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        """Try one step; returns it and its error, over the tolerance and pooled.

        The error of a state that is not finite is infinite.

        Args:
            point: where the solve is.
            dt: the lengths; 0 for tasks that wait.
            y: the state.
        """
        del point
        return self._tried(None, dt, y)

    def judged(self, moved: Tensor) -> None:
        """The attempt has been accepted for these tasks, which have moved on."""

    def _tried(self, method: int | None, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        tried = self._evaluate.attempt(method, dt, y)
        error = tried.error.to(torch.float64)
        error = torch.where(torch.isfinite(tried.y).all(-1), error, torch.inf)
        error = torch.where(dt > 0, error, torch.zeros_like(dt))
        return tried, self._controller.pool(error)
