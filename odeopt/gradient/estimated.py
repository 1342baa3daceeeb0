"""Value and gradient with an estimate of their error, from one more solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

from typing_extensions import override

from odeopt.engine.stats import Stats
from odeopt.errors import DivergenceError, StabilityError
from odeopt.gradient.coarsening import coarsen
from odeopt.gradient.error_estimate import estimate, no_estimate
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.gradient.value_and_grad import Call, ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.tools.types import PyTree

ONE_STEP = "there is but one step, which cannot be made longer"
UNSTABLE = "steps twice as long are not stable"


@dataclass(frozen=True)
class EstimatedValueAndGrad(ValueAndGrad):
    """`opt.value_and_grad(outer_loss, estimate_error=True)`, ready to be called."""

    @property
    @override
    def estimates_errors(self) -> bool:
        return True

    @override
    def counted(
        self, stats: Stats, params: PyTree, batch: PyTree, grid: TimeGrid, outer_batch: PyTree,
        hparams: PyTree = None, state: PyTree = None,
    ) -> Result:  # fmt: skip
        call = self.begun(stats, params, batch, grid, outer_batch, hparams, state)
        result = call.run(self.choices, stats)
        return replace(result, error=_error(call, result))


def _error(call: Call, result: Result) -> ErrorEstimate:
    """How far a result is from the flow's, by a solve with steps twice as long."""
    coarser = coarsen(call.solved.run)
    if coarser is None:
        return no_estimate(1, ONE_STEP)
    trace = call.solved.trace
    try:
        other = call.over(coarser.problem).run(coarser.choices, Stats(), coarser.refinement)
    except (DivergenceError, StabilityError):
        return no_estimate(coarser.decay.order, UNSTABLE)
    return estimate(result, other, coarser, trace)
