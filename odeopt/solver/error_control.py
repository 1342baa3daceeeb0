"""Solvers that choose their own steps from an estimate of the error."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from odeopt.solver.attempts import Attempt, Attempts, Evaluations
from odeopt.solver.base import StepSolver
from odeopt.solver.step_control import Tolerances
from odeopt.tools.types import Velocity


class ErrorControlled(StepSolver):
    """A step solver with an embedded estimate of its error, which chooses its own steps."""

    tolerances: Tolerances

    error_order: int
    """The order of the estimate: it is of the size of dt to the power of this + 1."""

    attempt_gradients: int
    """Gradient evaluations of an attempt."""

    def attempts(self, evaluate: Evaluations) -> Attempts:
        """The attempts of one solve; by default each is made with this solver itself."""
        return Attempts(evaluate, self.tolerances.controller)

    @abstractmethod
    def attempt(
        self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor
    ) -> Attempt:
        """Try one step; `slope` is the velocity at (t, y)."""

    def initial_dt(self, velocity: Velocity, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """The first step size; one gradient unless it was given; 0-dim."""
        return self.tolerances.initial_dt(velocity, t, y, slope, self.order)
