"""Solvers that choose their own steps from an estimate of the error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.solver.base import StepSolver
from odeopt.tools.arguments import is_positive
from odeopt.tools.shown import Shown, shown
from odeopt.tools.types import Velocity


@dataclass(frozen=True)
class PIController(Shown):
    r"""Multiplies dt by $s\, e_n^{-\alpha/k} e_{n-1}^{\beta/k}$, k being the estimate's order + 1.

    Here $e_n$ is the error of step n in units of the tolerance, 0-dim or of shape [tasks]. It costs
    no evaluation. With alpha = 1 and beta = 0 it is an I-controller, which lengthens steps sooner.

    Args:
        per_task: whether each task has its own steps; else all take the same, and the error is
            the root mean square over the tasks.
        safety: s.
        shrink: the least factor.
        stretch: the largest factor; 1 after a rejected step.
        alpha: the weight of this step's error, positive.
        beta: the weight of the error of the step before, not negative.

    Raises:
        InputError: if one of the numbers is out of its range.

    References:
        Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", II.4 and IV.2.
    """

    per_task: bool = True
    safety: float = 0.9
    shrink: float = 0.2
    stretch: float = 5.0
    alpha: float = 0.7
    beta: float = 0.4

    def __post_init__(self) -> None:
        if not (
            0 < self.safety <= 1
            and 0 < self.shrink < 1 < self.stretch
            and self.alpha > 0
            and self.beta >= 0
        ):
            raise InputError(
                f"{self}; expected 0 < safety <= 1, 0 < shrink < 1 < stretch, a positive alpha and"
                " a beta of at least 0."
            )

    def pool(self, error: Tensor) -> Tensor:
        """The error that decides, shape [] or [tasks]."""
        if self.per_task or error.ndim == 0:
            return error
        return error.square().mean().sqrt().expand(error.shape)

    def factor(self, error: Tensor, previous: Tensor, order: int) -> Tensor:
        """The factor for the next step size; a non-finite error shrinks."""
        floor = error.clamp(min=1e-10)
        now, before = self.alpha / (order + 1), self.beta / (order + 1)
        factor = self.safety * floor.pow(-now) * previous.pow(before)
        factor = torch.where(error > 1, factor.clamp(max=1.0), factor)
        return torch.nan_to_num(factor, nan=self.shrink).clamp(self.shrink, self.stretch)


@dataclass(frozen=True)
class Tolerances:
    """How large the error of one step may be, and how steps are chosen from it.

    Attributes:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        controller: chooses the step sizes.
        first_step: the first step size; estimated when None.
        max_steps: the most attempted steps.
    """

    rtol: float
    atol: float
    controller: PIController
    first_step: float | None
    max_steps: int

    def __post_init__(self) -> None:
        first_step = 1.0 if self.first_step is None else self.first_step
        for name, value in (("rtol", self.rtol), ("atol", self.atol), ("first_step", first_step)):
            if not (is_positive(value) and value < float("inf")):
                raise InputError(f"{name} is {shown(value)}; expected a positive finite number.")

    def ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        """The root mean square of an error over what is allowed, shape [] or [tasks]."""
        allowed = self.atol + self.rtol * torch.maximum(y0.abs(), y1.abs())
        return (error / allowed).square().mean(-1).sqrt()

    def initial_dt(
        self, velocity: Velocity, t: Tensor, y: Tensor, slope: Tensor, order: int
    ) -> Tensor:
        """The first step size by Hairer's rule; one gradient; 0-dim."""
        if self.first_step is not None:
            return torch.full_like(t, self.first_step)
        size, speed = self.ratio(y, y, y), self.ratio(slope, y, y)
        small = (size < 1e-5) | (speed < 1e-5)
        trial = torch.where(small, 1e-6, 0.01 * size / speed.clamp(min=1e-5))
        ahead = velocity(t + trial, y + trial * slope)
        bend = self.ratio(ahead - slope, y, y) / trial
        limit = torch.maximum(speed, bend).clamp(min=1e-15)
        return torch.minimum(100 * trial, (0.01 / limit).pow(1 / (order + 1)))


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
        return None

    def attempt(self, point: Point, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        """Try one step; returns it and its error, over the tolerance and pooled.

        The error of a state that is not finite is infinite.

        Args:
            point: where the solve is.
            dt: the lengths; 0 for tasks that wait.
            y: the state.
        """
        return self._tried(None, dt, y)

    def judged(self, moved: Tensor) -> None:
        """The attempt has been accepted for these tasks, which have moved on."""

    def _tried(self, method: int | None, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        tried = self._evaluate.attempt(method, dt, y)
        error = tried.error.to(torch.float64)
        error = torch.where(torch.isfinite(tried.y).all(-1), error, torch.inf)
        error = torch.where(dt > 0, error, torch.zeros_like(dt))
        return tried, self._controller.pool(error)


class ErrorControlled(StepSolver):
    """A step solver with an embedded estimate of its error, which chooses its own steps."""

    tolerances: Tolerances

    error_order: int
    """The order of the estimate: it is of the size of dt to the power of this + 1."""

    attempt_gradients: int
    """Gradient evaluations of an attempt."""

    _usual_controller: PIController = PIController()
    """The controller where none is given."""

    @override
    def _given(self) -> Mapping[str, Any]:
        own = self.tolerances.controller
        return {"controller": None if own == self._usual_controller else own}

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
