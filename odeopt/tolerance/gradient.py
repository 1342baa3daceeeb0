"""Value and gradient within a tolerance: trying settings until one meets it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from typing_extensions import override

from odeopt.beginning import Beginning
from odeopt.engine import make_kernels
from odeopt.errors import (
    CompatibilityError,
    DivergenceError,
    OdeoptError,
    StabilityError,
    StepLimitError,
    ToleranceError,
)
from odeopt.gradient import ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.result import Result
from odeopt.stats import Stats
from odeopt.stream import Stream
from odeopt.sweep.power import PowerIteration
from odeopt.tolerance.course import Course
from odeopt.tolerance.setting import gather_dt
from odeopt.tolerance.tuning import Tuning, longest
from odeopt.types import PyTree

ATTEMPTS = 8
"""The most settings that one call tries."""

ROUGH = 0.1
"""To what share the spectral radius is estimated."""


@dataclass(frozen=True)
class TunedValueAndGrad(ValueAndGrad):
    """`opt.value_and_grad(outer_loss)` of a `ToleranceOptimizer`."""

    tuning: Tuning | None = None

    @override
    def __call__(
        self,
        params: PyTree,
        batch: PyTree,
        grid: TimeGrid,
        outer_batch: PyTree,
        hparams: PyTree = None,
        state: PyTree = None,
    ) -> Result:
        if isinstance(batch, Stream):
            raise CompatibilityError(
                "from_tolerance follows a flow, which a Stream of batches has not: use"
                " ODEOptimizer with Euler() or an update rule."
            )
        assert self.tuning is not None, "given by value_and_grad"
        if not isinstance(grid, TimeGrid) or grid.steps == 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            return super().__call__(params, batch, grid, outer_batch, hparams, state)
        spent = Stats()
        course = self.tuning.known(grid, self.tasks)
        if course is None:
            stiffness = self._stiffness(params, batch, grid, hparams, state, spent)
            course = self.tuning.begin(grid, self.tasks, stiffness)
        inputs = (params, batch, grid, outer_batch, hparams, state)
        return self._search(course, self.tuning, inputs, spent)

    def _search(self, course: Course, tuning: Tuning, inputs: Any, spent: Stats) -> Result:
        params, batch, grid, *rest = inputs
        trouble: OdeoptError | None = None
        for _ in range(ATTEMPTS):
            if course.stalled:
                break
            setting, made = course.setting, course.setting.grid(grid)
            path = ValueAndGrad(
                tuning.choices(setting), self.outer, self.tasks, self.on_failure, None,
                self.estimate_error or course.due,
            )  # fmt: skip
            try:
                result = path(params, batch, made, *rest)
            except (DivergenceError, StabilityError, StepLimitError) as error:
                trouble = error
                course.fail()
                continue
            _add(spent, result.stats)
            if result.error is not None:
                _add(spent, result.error.stats)
            if course.accept(result.error):
                dt = gather_dt(result.grads.dt, made, grid)
                stats = replace(
                    result.stats, gradient_evaluations=spent.gradient_evaluations, hvps=spent.hvps
                )
                grads = replace(result.grads, dt=dt)
                error = result.error or course.error
                return replace(result, grads=grads, stats=stats, error=error)
        tuning.forget(grid, self.tasks)
        reason = (
            "finer steps no longer help, so that rounding limits it"
            if course.stalled
            else f"{ATTEMPTS} settings were tried"
        )
        raise ToleranceError(
            f"the error in the gradient did not come down to the tolerance {tuning.tol:g}:"
            f" {reason}. The last setting was {course.setting}. Raise tol (or use float64 in place"
            " of float32), shorten the horizon, or choose a solver with ODEOptimizer."
        ) from trouble

    def _stiffness(
        self, params: PyTree, batch: PyTree, grid: TimeGrid, hparams: PyTree, state: PyTree,
        stats: Stats,
    ) -> float:  # fmt: skip
        r"""$\rho T$ at the start, at most over the tasks."""
        begin = Beginning(self.choices.field, params, hparams, state)
        with torch.no_grad():
            problem = begin.problem(batch, grid, self.tasks)
            velocity = make_kernels(self.choices, problem, stats).velocity()
            y = problem.y0
            t = problem.grid.times[..., 0]
            slope = velocity(t.to(y.dtype), y)
            power = PowerIteration(velocity, stats, slope, accuracy=ROUGH)
            everyone = torch.ones_like(t, dtype=torch.bool)
            radius = power.estimate(t.to(y.dtype), y, slope, torch.zeros_like(t), everyone)
            stats.gradient_evaluations += 1
            return longest(problem.grid, radius)


def _add(total: Stats, part: Stats) -> None:
    total.gradient_evaluations += part.gradient_evaluations
    total.hvps += part.hvps
