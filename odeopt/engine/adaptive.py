"""Steps chosen on the way, recorded so that the backward sweep can take the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.kernels import Kernels
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper, Refinement, Stepper, grid_index
from odeopt.errors import CompatibilityError, StepLimitError
from odeopt.grid import TimeGrid
from odeopt.solver.error_control import Attempt, ErrorControlled, Evaluations, Point

LANDS = 1e-9
"""A step that comes to within this part of its length of a time of the grid ends there."""

LEAST_ERROR = 1e-4
"""An error over the tolerance below which a step counts no better to the controller."""

SHORTEST = 1e-14
"""The shortest step, relative to 1 + |t|: below it a task has failed."""


class AdaptiveStepper(Stepper):
    """Attempts steps until one is accepted, and records those that were.

    A task whose step size underflows gets a state of NaN, and takes no more part.
    """

    def __init__(
        self, kernels: Kernels, solver: ErrorControlled, grid: TimeGrid, y0: Tensor, stats: Stats
    ) -> None:
        _check_values_visible(solver, y0)
        self._solver, self._grid, self._dtype = solver, grid, y0.dtype
        self._kernels, self._stats = kernels, stats
        self._controller = solver.tolerances.controller
        times = grid.times if kernels.tasks is None else grid.times.expand(kernels.tasks, -1)
        self._targets = times.unbind(-1)
        self._parent = 0
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._parents: list[int] = []
        self._methods: list[int] = []
        self._evaluate = _Counted(kernels, solver, self._targets[-1], stats)
        self._attempts = solver.attempts(self._evaluate)
        self._start(y0)

    @property
    @override
    def length(self) -> int | None:
        return len(self._steps) if self._parent == self._grid.steps else None

    @override
    def settled(self) -> FixedStepper:
        starts, lengths = (torch.stack(own, dim=-1) for own in zip(*self._steps, strict=True))
        steps = Refinement(starts, lengths, list(self._parents), tuple(self._methods))
        return FixedStepper(self._kernels, self._grid, self._dtype, self._stats, steps)

    @override
    def advance(self, k: int, y: Tensor) -> Tensor:
        """Steps of tasks whose attempt was rejected have zero length."""
        point = self._point
        while True:
            target = self._targets[self._parent + 1]
            lands = point.t + self._dt * (1 + LANDS) >= target
            dt = torch.where(lands, target - point.t, self._dt)
            tried, error = self._attempts.attempt(point, dt, y)
            accepted = (error <= 1) | point.failed
            moved = accepted & (dt > 0)
            self._adapt(error, moved, lands, dt)
            if bool(moved.any()) or not bool((dt > 0).any()):
                return self._accept(tried, moved, lands, dt, y)

    @override
    def time(self, k: int) -> Tensor:
        return self._point.t if k == len(self._steps) else self._steps[k][0]

    @override
    def grid_index(self, k: int) -> int | None:
        position = grid_index(self._parents, k)
        return None if position is None or position > self._parent else position

    def _start(self, y0: Tensor) -> None:
        t = self._targets[0]
        start = t.to(self._dtype)
        slope = self._evaluate.velocity(t, y0)
        dt = self._kernels.initial_dt()(start, y0, slope).to(torch.float64)
        if self._solver.tolerances.first_step is None:
            self._stats.gradient_evaluations += 1
        self._point = self._evaluate.point = Point(t, slope)
        self._dt = self._controller.pool(dt)
        self._previous = torch.ones_like(self._dt)
        self._attempts.start(self._point, y0)
        self._shorten()

    def _adapt(self, error: Tensor, moved: Tensor, lands: Tensor, dt: Tensor) -> None:
        point = self._point
        factor = self._controller.factor(error, self._previous, self._solver.error_order)
        proposal = dt * factor
        proposal = torch.where(moved & lands, torch.maximum(proposal, self._dt), proposal)
        self._dt = torch.where(dt > 0, proposal, self._dt)
        self._previous = torch.where(moved, error.clamp(min=LEAST_ERROR), self._previous)
        point.failed = point.failed | ~(self._dt >= SHORTEST * (1 + point.t.abs()))  # NaN too
        self._dt = torch.where(point.failed, torch.full_like(self._dt, torch.inf), self._dt)
        self._attempts.judged(moved)
        self._shorten()

    def _shorten(self) -> None:
        longest = self._attempts.longest(self._point)
        if longest is not None:
            shorter = torch.minimum(self._dt, longest)
            self._dt = torch.where(self._point.failed, self._dt, shorter)

    def _accept(
        self, tried: Attempt, moved: Tensor, lands: Tensor, dt: Tensor, y: Tensor
    ) -> Tensor:
        point = self._point
        self._steps.append((point.t, torch.where(moved, dt, torch.zeros_like(dt))))
        self._parents.append(self._parent)
        if self._attempts.method is not None:
            self._methods.append(self._attempts.method)
        target = self._targets[self._parent + 1]
        point.t = torch.where(moved, torch.where(lands, target, point.t + dt), point.t)
        point.slope = torch.where(moved[..., None], tried.slope, point.slope)
        if bool((point.t >= target).all()):
            self._parent += 1
        lost = torch.full_like(y, torch.nan)
        after = torch.where(point.failed[..., None], lost, tried.y)
        return torch.where(moved[..., None], after, y)


class _Counted(Evaluations):
    """Evaluations for attempts, counted, and attempts refused when they are too many."""

    point: Point

    def __init__(
        self, kernels: Kernels, solver: ErrorControlled, end: Tensor, stats: Stats
    ) -> None:
        self._solver, self._end, self._stats = solver, end, stats
        self._velocity = kernels.velocity()
        self._attempts = 0

        @cache
        def attempt_of(method: int | None) -> tuple[Callable[..., Attempt], int]:
            own = kernels.at(method)
            return own.attempt(), own.attempt_gradients

        self._attempt_of = attempt_of

    @override
    def velocity(self, t: Tensor, y: Tensor) -> Tensor:
        self._stats.gradient_evaluations += 1
        return self._velocity(t.to(y.dtype), y)

    @override
    def attempt(self, method: int | None, dt: Tensor, y: Tensor) -> Attempt:
        self._attempts += 1
        limit, t = self._solver.tolerances.max_steps, self.point.t
        if self._attempts > limit:
            raise StepLimitError(
                f"{type(self._solver).__name__} made {limit} attempts and is at t ="
                f" {t.min().item():g} of {self._end.max().item():g}: raise max_steps or the"
                " tolerances, or shorten the horizon."
            )
        attempt, cost = self._attempt_of(method)
        self._stats.gradient_evaluations += cost
        return attempt(t.to(y.dtype), dt.to(y.dtype), y, self.point.slope)


def _check_values_visible(solver: ErrorControlled, y0: Tensor) -> None:
    try:
        bool(torch.isfinite(y0).any())
    except RuntimeError as error:
        raise CompatibilityError(
            f"{type(solver).__name__} chooses steps from values, which torch.func.vmap hides. Use"
            " tasks=True instead of vmap around the solve, or a solver with fixed steps."
        ) from error
