"""Value and gradient within a tolerance: measuring settings, and using the cheapest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from odeopt.engine.stats import Stats
from odeopt.errors import (
    CompatibilityError,
    DivergenceError,
    StabilityError,
    StepLimitError,
    ToleranceError,
)
from odeopt.gradient.error_estimate import Decay, largest_gap, relative_change, richardson, scaled
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.gradient.value_and_grad import ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.inner.stream import Stream
from odeopt.tolerance.search import Pair, Search, size
from odeopt.tolerance.setting import Setting, divided, gather_dt, spans
from odeopt.tolerance.tuning import Tuning
from odeopt.tools.types import PyTree

ATTEMPTS = 8
"""The most pairs that one call tries."""

FAILURES = (DivergenceError, StabilityError, StepLimitError)
"""What a setting that is too coarse may raise."""


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
        inputs = (params, batch, grid, outer_batch, hparams, state)
        solves = _Solves(self, self.tuning, inputs, stats)
        result = self._call(self.tuning.search(grid, self.tasks), solves)
        spent = replace(
            result.stats, gradient_evaluations=stats.gradient_evaluations, hvps=stats.hvps
        )
        return replace(result, stats=spent)

    def _call(self, search: Search, solves: _Solves) -> Result:
        working = search.working
        if working is None:
            return self._first(search, solves)
        try:
            if search.due or self.judges:
                judged = solves.judged(working.setting, solves.partner(working.setting))
                if search.audit(judged.pair.error):
                    return judged.result
            else:
                search.count()
                result = replace(solves.run(working.setting), error=working.error)
                _measure(search, solves, result, working.error)
                return result
        except FAILURES:
            pass  # another problem than those that the setting was measured on
        search.restart()
        return self._first(search, solves)

    def _first(self, search: Search, solves: _Solves) -> Result:
        """Pairs that get finer until one meets the tolerance."""
        coarse, fine = search.first, solves.partner(search.first)
        trouble, last = None, math.inf
        for _ in range(ATTEMPTS):
            try:
                judged = solves.judged(coarse, fine)
            except FAILURES as error:
                trouble, coarse, fine = error, fine, solves.partner(fine)
                continue
            error = size(judged.pair.error)
            if search.meets(error):
                search.accept(judged.pair)
                return judged.result
            if error > 0.5 * last and judged.pair.error.trusted:
                raise self._missed(fine, "finer steps no longer help, so that rounding limits it")
            coarse, fine, last = fine, search.finer(fine, error), error
        raise self._missed(fine, f"{ATTEMPTS} settings were tried") from trouble

    def _missed(self, setting: Setting, reason: str) -> ToleranceError:
        assert self.tuning is not None, "given by value_and_grad"
        return ToleranceError(
            "the error in the gradient did not come down to the tolerance"
            f" {self.tuning.tol:g}: {reason}. The last setting was {setting}. Raise tol (or use"
            " float64 in place of float32), shorten the horizon, or choose a solver with"
            " ODEOptimizer."
        )


def _measure(search: Search, solves: _Solves, result: Result, known: ErrorEstimate) -> None:
    """Measure one setting that could be cheaper, beside the result of the one that is used.

    Its error is at least its distance from that result, less the error of that.
    """
    setting = search.proposal()
    if setting is None:
        return
    try:
        judged = solves.judged(setting, solves.partner(setting))
    except FAILURES:
        return search.reject(setting)
    pair, apart = judged.pair, relative_change(result, judged.result) - size(known)
    error = max(size(pair.error), apart)
    if not search.meets(error):
        return search.reject(setting, error)
    return search.accept(pair._replace(error=scaled(pair.error, error / size(pair.error))))


class _Judged(NamedTuple):
    """The finer result of a pair, and what the two have shown."""

    result: Result
    pair: Pair


class _Solves:
    """The solves of one call, each made once; what each costs is added to `stats`."""

    def __init__(self, owner: TunedValueAndGrad, tuning: Tuning, inputs: Any, stats: Stats) -> None:
        self._owner, self._tuning, self._stats = owner, tuning, stats
        self._params, self._batch, self._grid, *self._rest = inputs
        self._results: dict[Setting, tuple[list[int], Result]] = {}

    def partner(self, setting: Setting) -> Setting:
        """The finer one of a pair."""
        return setting.partner(spans(self._grid))

    def run(self, setting: Setting) -> Result:
        """The result with a setting."""
        return self._solved(setting, setting.parts(self._grid))[1]

    def judged(self, coarse: Setting, fine: Setting) -> _Judged:
        """The finer of two settings, with its error from a comparison with the other one."""
        parts, other = self._solved(coarse, coarse.parts(self._grid))
        counts, factor = fine.beside(coarse, parts)
        result = self._solved(fine, counts)[1]
        error, change = _compare(result, other, Decay(fine.solver.order, factor))
        pair = Pair(coarse, fine, error, change, (_cost(other), _cost(result)))
        return _Judged(replace(result, error=error), pair)

    def _solved(self, setting: Setting, parts: list[int]) -> tuple[list[int], Result]:
        if setting not in self._results:
            self._results[setting] = parts, self._run(setting, parts)
        return self._results[setting]

    def _run(self, setting: Setting, parts: list[int]) -> Result:
        """A solve with so many steps in each part, in terms of the grid that was asked for."""
        owner, stats = self._owner, Stats()
        path = ValueAndGrad(
            self._tuning.choices(setting), owner.outer, owner.tasks, owner.on_failure
        )
        grid = divided(self._grid, parts)
        try:
            result = path.counted(stats, self._params, self._batch, grid, *self._rest)
        finally:
            self._stats.gradient_evaluations += stats.gradient_evaluations
            self._stats.hvps += stats.hvps
        dt = gather_dt(result.grads.dt, grid, self._grid)
        return replace(result, grads=replace(result.grads, dt=dt))


def _cost(result: Result) -> int:
    return result.stats.gradient_evaluations + result.stats.hvps


def _compare(fine: Result, coarse: Result, decay: Decay) -> tuple[ErrorEstimate, float]:
    """The error of the finer of two results, with the gap of steps twice as long; their change.

    The gap is that of the pair if its steps are further apart than that. An error below that of
    rounding a number is not believed, even if both are the same.
    """
    longer, least = max(decay.doubled, 1.0), torch.finfo(fine.value.dtype).eps
    error = richardson(fine, coarse, decay, largest_gap(decay.order) / longer)
    known = least if torch.equal(fine.status, coarse.status) else math.inf
    raised = replace(error, params=max(error.params, known), gap=error.gap * longer)
    return raised, error.gap
