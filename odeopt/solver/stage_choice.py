"""Attempts whose number of stages is chosen on the way."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.solver import chebyshev
from odeopt.solver.attempts import Attempt, Attempts, Evaluations, Point
from odeopt.solver.spectral_radius import PowerIteration
from odeopt.solver.step_control import PIController

SAFETY = 1.15
"""By how much the estimated spectral radius, a lower bound, is raised."""

BLOW_UP = 100.0
"""An error over the tolerance that a step too long for the accuracy alone hardly makes."""


class StageChoice(Attempts):
    """Tries steps with as many stages as the spectral radius at both ends asks for.

    After a rejected step the radius is estimated from a new vector. If that explains nothing,
    though the error has blown up or the second attempt fails as well, the margin over the
    estimates grows; it falls again with each accepted step.

    Args:
        evaluate: what may be evaluated.
        controller: says whether tasks have steps of their own.
        max_stages: the most stages of a step.
    """

    def __init__(self, evaluate: Evaluations, controller: PIController, max_stages: int) -> None:
        super().__init__(evaluate, controller)
        self._max_stages = max_stages

    @override
    def start(self, point: Point, y0: Tensor) -> None:
        self._power = PowerIteration(self._evaluate.velocity, point.slope)
        self._margin = torch.full_like(point.t, SAFETY)
        self._rejected = torch.zeros_like(point.failed)
        zero, everyone = torch.zeros_like(point.t), ~point.failed
        self._radius = self._power.estimate(point.t, y0, point.slope, zero, everyone)

    @override
    def longest(self, point: Point) -> Tensor:
        """No step may be longer than the most stages make stable."""
        del point
        rate = self._radius * self._margin
        if not self._controller.per_task:
            rate = rate.amax().expand_as(rate)
        return chebyshev.stability_limit(self._max_stages) / rate

    @override
    def attempt(self, point: Point, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        active = (dt > 0) & ~point.failed
        while True:
            stages, limit = self._choose(dt, active)
            tried, error = self._tried(stages, dt, y)
            good = active & (error <= 1)
            self._look_ahead(point, dt, tried, good)
            unstable = good & (dt * self._radius_ahead * SAFETY**0.5 > limit)
            if not bool(unstable.any()):
                break
            self._radius = torch.where(unstable, self._radius_ahead, self._radius)
            if stages == self._max_stages:
                error = torch.where(unstable, torch.full_like(error, 2.0), error)
                break
        self.method = stages
        rejected = active & ~(error <= 1)
        if bool(rejected.any()):
            self._suspect(point, y, tried, error, rejected)
        self._rejected = rejected
        return tried, error

    @override
    def judged(self, moved: Tensor) -> None:
        self._radius = torch.where(moved, self._radius_ahead, self._radius)
        relaxed = (0.95 * self._margin).clamp(min=SAFETY)
        self._margin = torch.where(moved, relaxed, self._margin)

    def _choose(self, dt: Tensor, active: Tensor) -> tuple[int, float]:
        """The number of stages that the stiffest task needs, and their stability limit."""
        stiffness = torch.where(active, dt * self._radius * self._margin, 0.0).amax().item()
        stages = chebyshev.stages_for(stiffness, self._max_stages)
        return stages, chebyshev.stability_limit(stages)

    def _look_ahead(self, point: Point, dt: Tensor, tried: Attempt, good: Tensor) -> None:
        """The radius at the new state, where it is of use."""
        self._radius_ahead = self._radius
        if bool(good.any()):
            self._radius_ahead = self._power.estimate(
                point.t + dt, tried.y, tried.slope, self._radius, good
            )

    def _suspect(
        self, point: Point, y: Tensor, tried: Attempt, error: Tensor, rejected: Tensor
    ) -> None:
        """Estimate the radius of rejected tasks anew; what blew up shows the direction."""
        self._power.renew(torch.where(rejected[..., None], tried.y - y, 0.0))
        nothing = torch.zeros_like(self._radius)
        found = self._power.estimate(point.t, y, point.slope, nothing, rejected)
        grown = found > 1.05 * self._radius
        blown = ~(error <= BLOW_UP) | self._rejected
        wider = (1.25 * self._margin).clamp(max=4 * SAFETY)
        self._margin = torch.where(rejected & blown & ~grown, wider, self._margin)
        self._radius = torch.where(rejected, torch.maximum(found, self._radius), self._radius)
