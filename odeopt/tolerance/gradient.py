"""Value and gradient within a tolerance: trying settings until one meets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from odeopt.engine.run import Run, make_kernels
from odeopt.engine.stats import Stats
from odeopt.errors import (
    CompatibilityError,
    DivergenceError,
    OdeoptError,
    StabilityError,
    StepLimitError,
    ToleranceError,
)
from odeopt.gradient.error_estimate import Decay, largest_gap, next_term, richardson
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.gradient.value_and_grad import Beginning, ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.inner.stream import Stream
from odeopt.tolerance.course import Course
from odeopt.tolerance.extrapolation import extrapolate, left, shrunk
from odeopt.tolerance.pair import FURTHER
from odeopt.tolerance.pilot import pilot
from odeopt.tolerance.setting import Setting, divided, gather_dt
from odeopt.tolerance.stability import UnstableStepsError, refuse_unstable
from odeopt.tolerance.tuning import Tuning
from odeopt.tools.types import PyTree

ATTEMPTS = 8
"""The most settings that one call tries."""


@dataclass(frozen=True)
class TunedValueAndGrad(ValueAndGrad):
    """`opt.value_and_grad(outer_loss)` of a `ToleranceOptimizer`.

    Attributes:
        tuning: what has been learnt.
        judges: whether the error of every call is estimated.
    """

    tuning: Tuning | None = None
    judges: bool = False

    @property
    @override
    def depends_on_company(self) -> bool:
        return True

    @override
    def counted(
        self,
        stats: Stats,
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
            return super().counted(stats, params, batch, grid, outer_batch, hparams, state)
        course = self.tuning.known(grid, self.tasks)
        if course is None:
            problem = Beginning(self.choices.field, params, hparams, state).problem(
                batch, grid, self.tasks
            )
            kernels = make_kernels(self.choices, problem, stats)
            seen = pilot(kernels, problem, stats, self.tuning.real_spectrum)
            course = self.tuning.begin(grid, self.tasks, seen)
        inputs = (params, batch, grid, outer_batch, hparams, state)
        return self._search(course, self.tuning, inputs, stats)

    def _search(self, course: Course, tuning: Tuning, inputs: Any, spent: Stats) -> Result:
        grid: TimeGrid = inputs[2]
        solves = _Solves(self, tuning, inputs, spent)
        trouble: OdeoptError | None = None
        for _ in range(ATTEMPTS):
            if course.stalled:
                break
            try:
                if course.working is not None and not (course.due or self.judges):
                    course.note_call()
                    return solves.settled(course.working, course.error)
                judged = solves.judged(course.setting, course.finer)
            except (DivergenceError, StabilityError, StepLimitError) as error:
                trouble = error
                course.fail(error.further if isinstance(error, UnstableStepsError) else FURTHER)
                continue
            if course.accept(judged.error, judged.change, judged.costs, judged.left):
                together = course.extrapolates(judged.error, judged.left)
                return solves.answer(judged.together() if together else judged.finer())
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


class _Judged(NamedTuple):
    """A pair of solves; the error is that of the finer one."""

    fine: Result
    coarse: Result
    error: ErrorEstimate
    change: float
    """The relative change of the gradient between the two."""
    ahead: float
    """Their difference in units of the error."""
    left: float
    """The share of the error that extrapolation leaves."""

    @property
    def costs(self) -> tuple[int, int]:
        """Gradients and Hessian-vector products of the coarser and of the finer solve."""
        return _cost(self.coarse), _cost(self.fine)

    def finer(self) -> Result:
        """The finer one by itself."""
        return replace(self.fine, error=self.error)

    def together(self) -> Result:
        """What both say together."""
        closer = extrapolate(self.fine, self.coarse, self.ahead)
        return replace(closer, error=shrunk(self.error, self.left))


class _Solves:
    """The solves of one call; what each costs is added to `spent`."""

    def __init__(self, owner: TunedValueAndGrad, tuning: Tuning, inputs: Any, spent: Stats) -> None:
        self._owner, self._tuning, self._spent = owner, tuning, spent
        self._params, self._batch, self._grid, *self._rest = inputs
        self._made: dict[Setting, tuple[list[int], Result]] = {}

    def settled(self, setting: Setting, error: ErrorEstimate | None) -> Result:
        """With a setting that is known to do, and what is known of its error."""
        result = self._run(setting, setting.parts(self._grid))
        return self.answer(replace(result, error=error))

    def judged(self, setting: Setting, finer: Setting) -> _Judged:
        """The finer of two settings, with its error from a comparison with the other one."""
        parts, coarse = self._begun(setting)
        counts, factor = finer.beside(setting, parts)
        fine = self._try(finer, counts)
        self._made[finer] = counts, fine
        decay = Decay(setting.solver.order, factor, self._next_term(setting))
        error, change = _compare(fine, coarse, decay)
        alike = torch.equal(fine.status, coarse.status) and _in_proportion(counts, parts)
        share = left(setting.method, change, fine.value.dtype) if alike else 1.0
        return _Judged(fine, coarse, error, change, decay.ahead(change), share)

    def _begun(self, setting: Setting) -> tuple[list[int], Result]:
        """The coarser solve of a pair and its numbers of steps; it may have been made before."""
        if setting not in self._made:
            parts = setting.parts(self._grid)
            self._made[setting] = parts, self._try(setting, parts)
        return self._made[setting]

    def _next_term(self, setting: Setting) -> float:
        return next_term(self._owner.choices.field, setting.solver)

    def answer(self, result: Result) -> Result:
        """The result with all that was spent."""
        spent = self._spent
        stats = replace(
            result.stats, gradient_evaluations=spent.gradient_evaluations, hvps=spent.hvps
        )
        return replace(result, stats=stats)

    def _try(self, setting: Setting, parts: list[int]) -> Result:
        """A solve whose steps may be too long."""
        tells = setting.method == "euler" and self._tuning.real_spectrum
        return self._run(setting, parts, refuse_unstable if tells else None)

    def _run(
        self, setting: Setting, parts: list[int], inspect: Callable[[Run], None] | None = None
    ) -> Result:
        """A solve with so many steps in each part, in terms of the grid that was asked for."""
        owner, choices = self._owner, self._tuning.choices(setting)
        path = ValueAndGrad(choices, owner.outer, owner.tasks, owner.on_failure, inspect=inspect)
        made, spent = divided(self._grid, parts), Stats()
        try:
            result = path.counted(spent, self._params, self._batch, made, *self._rest)
        finally:
            self._spent.gradient_evaluations += spent.gradient_evaluations
            self._spent.hvps += spent.hvps
        dt = gather_dt(result.grads.dt, made, self._grid)
        return replace(result, grads=replace(result.grads, dt=dt))


def _cost(result: Result) -> int:
    return result.stats.gradient_evaluations + result.stats.hvps


def _in_proportion(counts: list[int], others: list[int]) -> bool:
    """Whether each part of the grid is divided as many times as finely."""
    return all(
        own * others[0] == counts[0] * other for own, other in zip(counts, others, strict=True)
    )


def _compare(fine: Result, coarse: Result, decay: Decay) -> tuple[ErrorEstimate, float]:
    """The error of the finer of two results, with the gap of steps twice as long; their change.

    The gap is that of the pair if its steps are further apart than that. An error below that of
    rounding a number is not believed, even if both are the same.
    """
    longer, least = max(decay.doubled, 1.0), torch.finfo(fine.value.dtype).eps
    found = richardson(fine, coarse, decay, largest_gap(decay.order) / longer)
    return replace(found, params=max(found.params, least), gap=found.gap * longer), found.gap
