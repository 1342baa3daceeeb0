"""Steps whose number of stages is chosen on the way, too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.adaptive import AdaptiveStepper, Refinement
from odeopt.engine.kernels import Kernels
from odeopt.engine.spectral_radius import PowerIteration
from odeopt.engine.stats import Stats
from odeopt.grid import TimeGrid
from odeopt.solver.error_control import Attempt
from odeopt.solver.stabilized import SAFETY, StabilizedRK

BLOW_UP = 100.0
"""An error over the tolerance that a step too long for the accuracy alone hardly makes."""


class StabilizedStepper(AdaptiveStepper):
    """Attempts steps with as many stages as the spectral radius at both ends asks for.

    After a rejected step the radius is estimated from a new vector. If that explains nothing,
    though the error has blown up or the second attempt fails as well, the margin over the
    estimates grows; it falls again with each accepted step.
    """

    def __init__(
        self, kernels: Kernels, solver: StabilizedRK, grid: TimeGrid, y0: Tensor, stats: Stats
    ) -> None:
        self._stabilized = solver
        self._stages: list[int] = []
        self._attempts_with: dict[int, Callable[..., Attempt]] = {}
        super().__init__(kernels, solver, grid, y0, stats)

    @property
    @override
    def refinement(self) -> Refinement:
        return replace(super().refinement, stages=tuple(self._stages))

    @override
    def _start(self, y0: Tensor) -> None:
        super()._start(y0)
        self._power = PowerIteration(self._kernels.velocity(), self._stats, self._slope)
        self._margin = torch.full_like(self._dt, SAFETY)
        self._rejected = torch.zeros_like(self._failed)
        zero, everyone = torch.zeros_like(self._dt), ~self._failed
        start = self._t.to(self._dtype)
        self._radius = self._power.estimate(start, y0, self._slope, zero, everyone)
        self._shorten()

    @override
    def _try(self, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        active = (dt > 0) & ~self._failed
        while True:
            stages, limit = self._choose(dt, active)
            tried, error = self._attempt_stages(stages, dt, y)
            good = active & (error <= 1) & torch.isfinite(tried.y).all(-1)
            self._look_ahead(dt, tried, good)
            unstable = good & (dt * self._radius_ahead * SAFETY**0.5 > limit)
            if not bool(unstable.any()):
                break
            self._radius = torch.where(unstable, self._radius_ahead, self._radius)
            if stages == self._stabilized.max_stages:
                error = torch.where(unstable, torch.full_like(error, 2.0), error)
                break
        self._tried_stages = stages
        rejected = active & ~(error <= 1)
        if bool(rejected.any()):
            self._suspect(y, tried, error, rejected)
        self._rejected = rejected
        return tried, error

    @override
    def _adapt(self, error: Tensor, accepted: Tensor, lands: Tensor, dt: Tensor) -> None:
        super()._adapt(error, accepted, lands, dt)
        moved = accepted & (dt > 0)
        self._radius = torch.where(moved, self._radius_ahead, self._radius)
        relaxed = (0.95 * self._margin).clamp(min=SAFETY)
        self._margin = torch.where(moved, relaxed, self._margin)
        self._shorten()

    @override
    def _accept(
        self, tried: Attempt, accepted: Tensor, lands: Tensor, dt: Tensor, y: Tensor
    ) -> Tensor:
        self._stages.append(self._tried_stages)
        return super()._accept(tried, accepted, lands, dt, y)

    def _choose(self, dt: Tensor, active: Tensor) -> tuple[int, float]:
        """The number of stages that the stiffest task needs, and their stability limit."""
        stiffness = torch.where(active, dt * self._radius * self._margin, 0.0).amax().item()
        stages = self._stabilized.stages_for(stiffness)
        return stages, self._stabilized.at(stages).stability_limit

    def _attempt_stages(self, stages: int, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        self._count_attempt()
        if stages not in self._attempts_with:
            self._attempts_with[stages] = self._kernels.at(stages).attempt()
        attempt = self._attempts_with[stages]
        tried = attempt(self._t.to(self._dtype), dt.to(self._dtype), y, self._slope)
        self._stats.gradient_evaluations += stages
        error = torch.where(dt > 0, tried.error.to(torch.float64), torch.zeros_like(dt))
        return tried, self._tolerances.controller.pool(error)

    def _look_ahead(self, dt: Tensor, tried: Attempt, good: Tensor) -> None:
        """The radius at the new state, where it is of use."""
        self._radius_ahead = self._radius
        if bool(good.any()):
            t = (self._t + dt).to(self._dtype)
            self._radius_ahead = self._power.estimate(t, tried.y, tried.slope, self._radius, good)

    def _suspect(self, y: Tensor, tried: Attempt, error: Tensor, rejected: Tensor) -> None:
        """Estimate the radius of rejected tasks anew; what blew up shows the direction."""
        self._power.renew(torch.where(rejected[..., None], tried.y - y, 0.0))
        t, nothing = self._t.to(self._dtype), torch.zeros_like(self._radius)
        found = self._power.estimate(t, y, self._slope, nothing, rejected)
        grown = found > 1.05 * self._radius
        blown = ~(error <= BLOW_UP) | self._rejected
        wider = (1.25 * self._margin).clamp(max=4 * SAFETY)
        self._margin = torch.where(rejected & blown & ~grown, wider, self._margin)
        self._radius = torch.where(rejected, torch.maximum(found, self._radius), self._radius)

    def _shorten(self) -> None:
        """No step may be longer than the most stages make stable."""
        rate = self._radius * self._margin
        if not self._tolerances.controller.per_task:
            rate = rate.amax().expand_as(rate)
        longest = self._stabilized.longest / rate
        self._dt = torch.where(self._failed, self._dt, torch.minimum(self._dt, longest))
