"""An embedded Runge-Kutta method that chooses its own steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from odeopt.errors import CompatibilityError, InputError
from odeopt.registry import SOLVERS
from odeopt.solver.runge_kutta import ExplicitRungeKutta, advance, shift, weighted_sum
from odeopt.solver.tableau import DORMAND_PRINCE, Tableau
from odeopt.types import Velocity


class Attempt(NamedTuple):
    """One tried step."""

    y: Tensor
    """The new state, shape [d]."""
    error: Tensor
    """The root mean square of the estimated error over the tolerance; accepted if at most 1."""
    slope: Tensor
    """The velocity at the new state, reused by the next attempt."""


@dataclass(frozen=True)
class PIController:
    r"""Multiplies dt by $s\, e_n^{-0.7/k} e_{n-1}^{0.4/k}$, k being the order of the estimate + 1.

    Args:
        per_task: whether each task has its own steps; else all take the same, and the error is
            the root mean square over the tasks.
        safety: s.
        shrink: the least factor.
        stretch: the largest factor; 1 after a rejected step.

    References:
        Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", II.4 and IV.2.
    """

    per_task: bool = True
    safety: float = 0.9
    shrink: float = 0.2
    stretch: float = 5.0

    def pool(self, error: Tensor) -> Tensor:
        """The error that decides, shape [] or [tasks]."""
        if self.per_task or error.ndim == 0:
            return error
        return error.square().mean().sqrt().expand(error.shape)

    def factor(self, error: Tensor, previous: Tensor, order: int) -> Tensor:
        """The factor for the next step size; a non-finite error shrinks."""
        floor = error.clamp(min=1e-10)
        factor = self.safety * floor.pow(-0.7 / (order + 1)) * previous.pow(0.4 / (order + 1))
        factor = torch.where(error > 1, factor.clamp(max=1.0), factor)
        return torch.nan_to_num(factor, nan=self.shrink).clamp(self.shrink, self.stretch)


@final
@SOLVERS.register("adaptive")
class Adaptive(ExplicitRungeKutta):
    """An embedded explicit Runge-Kutta method with error control; Dormand-Prince 5(4) by default.

    It lands on every time of the grid and makes as many steps between two of them as the
    tolerances ask for: give it `TimeGrid.uniform(t1, steps=1)` to leave it free. The accepted
    steps are recorded; the backward sweep takes them as they are (the controller is not
    differentiated), so that `DiscreteAdjoint` gives the exact gradient of the accepted steps.
    Checkpoint schedules count accepted steps. One that needs their number in advance (`Density`,
    `Binomial`) makes the forward solve twice.

    Cost: 6 gradients per attempted step, and 2 to choose the first step size.

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        tableau: an embedded tableau whose last stage is the velocity at the new state.
        controller: chooses the step sizes.
        first_step: the first step size; estimated when None.
        max_steps: the most attempted steps.
    """

    def __init__(
        self,
        rtol: float = 1e-6,
        atol: float = 1e-8,
        tableau: Tableau = DORMAND_PRINCE,
        controller: PIController | None = None,
        first_step: float | None = None,
        max_steps: int = 100_000,
    ) -> None:
        super().__init__(tableau)
        if tableau.b_error is None or tableau.b != (*tableau.a[-1], 0.0):
            raise CompatibilityError(
                "Adaptive needs an embedded tableau whose last stage is the velocity at the new"
                " state, such as DORMAND_PRINCE or BOGACKI_SHAMPINE."
            )
        for name, value in (("rtol", rtol), ("atol", atol), ("first_step", first_step or 1.0)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name} is {value!r}; expected a positive finite number.")
        self.rtol, self.atol = rtol, atol
        self.controller = controller or PIController()
        self.first_step = first_step
        self.max_steps = max_steps

    def attempt(
        self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor
    ) -> Attempt:
        """Try one step; `slope` is the velocity at (t, y). Costs one gradient less than stages."""
        tableau = self.tableau
        assert tableau.b_error is not None, "checked when constructed"
        slopes = [slope]
        state = y
        for row, c in list(zip(tableau.a, tableau.c, strict=True))[1:]:
            state = advance(y, dt, row, slopes)
            slopes.append(velocity(shift(t, c, dt), state))
        error = dt * weighted_sum(tableau.b_error, slopes)
        return Attempt(state, self._ratio(error, y, state), slopes[-1])

    def initial_dt(self, velocity: Velocity, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """The first step size by Hairer's rule; one gradient; 0-dim."""
        if self.first_step is not None:
            return torch.full_like(t, self.first_step)
        size, speed = self._ratio(y, y, y), self._ratio(slope, y, y)
        small = (size < 1e-5) | (speed < 1e-5)
        trial = torch.where(small, 1e-6, 0.01 * size / speed.clamp(min=1e-5))
        ahead = velocity(t + trial, y + trial * slope)
        bend = self._ratio(ahead - slope, y, y) / trial
        limit = torch.maximum(speed, bend).clamp(min=1e-15)
        return torch.minimum(100 * trial, (0.01 / limit).pow(1 / (self.order + 1)))

    def _ratio(self, error: Tensor, y0: Tensor, y1: Tensor) -> Tensor:
        allowed = self.atol + self.rtol * torch.maximum(y0.abs(), y1.abs())
        return (error / allowed).square().mean().sqrt()
