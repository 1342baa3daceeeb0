"""How far a gradient is from that of the flow: Richardson's rule, from one more solve.

The other solve has steps twice as long, or, in `odeopt.tolerance`, another number of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import LocalAdjoint
from odeopt.engine.backward import Trace
from odeopt.engine.choices import Choices
from odeopt.engine.problem import Problem
from odeopt.engine.run import Run
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import Refinement, SettledStepper
from odeopt.errors import CompatibilityError, DivergenceError, StabilityError
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.gradient.value_and_grad import Call, ValueAndGrad
from odeopt.grid import TimeGrid
from odeopt.inner.field import GradientField
from odeopt.inner.rule import UpdateRule
from odeopt.solver.base import GridSolver, Solver
from odeopt.tools import tree
from odeopt.tools.types import PyTree

LARGEST_DEFECT = 0.1
"""Of an interpolated state, beyond which cubic interpolation is not in its asymptotic range."""

FEWEST_STEPS = 4
"""Of a solve with chosen steps put together, below which their lengths differ too much."""


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
        return replace(result, error=_estimate(call, result))


def _estimate(call: Call, fine: Result) -> ErrorEstimate:
    """How far a result is from the flow's, by a solve with steps twice as long."""
    coarser, trace = coarsen(call.solved.run), call.solved.trace
    if coarser is None:
        return _no_estimate(1, "there is but one step, which cannot be made longer")
    try:
        coarse = call.over(coarser.problem).run(coarser.choices, Stats(), coarser.refinement)
    except (DivergenceError, StabilityError):
        return _no_estimate(coarser.decay.order, "steps twice as long are not stable")
    error = richardson(fine, coarse, coarser.decay, coarser.largest_gap)
    doubts = list(error.doubts)
    if coarser.refinement is not None and coarse.stats.steps < FEWEST_STEPS:
        doubts.append(f"there are only {fine.stats.steps} steps, of different lengths")
    defects = _interpolation_defects(trace, fine.value)
    if defects is not None and bool((defects > LARGEST_DEFECT).any()):
        doubts.append(
            f"the interpolated state misses the flow by {defects.max().item():.2f} of its way"
        )
    return replace(error, doubts=tuple(doubts), defects=defects)


def _no_estimate(order: int, doubt: str) -> ErrorEstimate:
    """What is known when there is nothing to compare with."""
    return ErrorEstimate(math.inf, math.inf, math.inf, math.inf, order, (doubt,), Stats())


def _interpolation_defects(trace: Trace, like: Tensor) -> Tensor | None:
    """The defect in each interval, the earliest first; None where nothing was interpolated."""
    if trace.exact or not trace.starts:
        return None
    defects = trace.read(like).defect.flip(0)
    return defects if bool((defects > 0).any()) else None


class Decay(NamedTuple):
    r"""How much larger the error of a coarser solve is: $e(h) = c\,h^p\,(1 + a\,h)$.

    Attributes:
        order: p.
        factor: $r^p$, where r is how much longer the steps of the coarser solve are.
        next_term: $a\,h / x^{1/p}$, where x is the relative change of the gradient with steps twice
            as long, which goes like $h^p$; 0 if it is not known.
    """

    order: int
    factor: float
    next_term: float = 0.0

    @property
    def doubled(self) -> float:
        """How many times as large the change would be if steps were twice as long."""
        return (2.0**self.order - 1) / (self.factor - 1)

    def ahead(self, gap: float) -> float:
        r"""The difference of two solves over the error of the finer one.

        That is $(r^p\,(1 + a r h) - (1 + a h)) / (1 + a h)$, to first order in $a h$.

        Args:
            gap: the relative change of the gradient between the two.
        """
        leading, ratio = self.factor - 1, self.factor ** (1 / self.order)
        if self.next_term == 0 or not math.isfinite(gap):
            return leading
        next_term = self.next_term * (gap * self.doubled) ** (1 / self.order)
        return leading + self.factor * (ratio - 1) * next_term


def next_term(field: object, solver: Solver) -> float:
    r"""See `Decay`, for the exact adjoint of a method with a fixed number of stages.

    Where the eigenvalues $-\mu$ of the Jacobian are real and negative the terms of the error of a
    step, $\ln R(-\mu h) + \mu h$, have one sign. The numbers are what the random problems of the
    benchmark `tolerance` have: with them estimates for RK4 were within 10 % in nine of
    ten cases, which were 2 to 43 % too large. Methods whose stability polynomial is stretched have
    next to none.
    """
    known = isinstance(field, GradientField) and not solver.real_spectrum
    return {2: 0.5, 4: 2.35}.get(solver.order, 0.0) if known else 0.0


def largest_gap(order: int) -> float:
    """The relative change of the gradient up to which an error falls as expected.

    It is that of such methods, with steps twice as long. Beyond, these are near the limit of
    stability or further terms count; exact adjoints have no guard that would notice the first.
    """
    return {1: 0.1, 2: 0.001, 3: 0.001, 4: 0.0005}.get(order, 0.00005)


LARGEST_GAP_OF_INTERPOLATED, LARGEST_GAP_OF_CHOSEN_STAGES = 0.01, 5e-4
"""Of gradients of order 2 along interpolated states, and with numbers of stages that are chosen."""

LARGEST_GAP_OF_CHOSEN_STEPS = 1e-6
"""The same where chosen steps, of a fixed number of stages, are as long as is stable."""


def richardson(fine: Result, coarse: Result, decay: Decay, largest_gap: float) -> ErrorEstimate:
    """The error of a result, from another one whose error is larger by a factor.

    Args:
        fine: the result.
        coarse: the other one.
        decay: how the error falls from that to this.
        largest_gap: the relative change up to which it is as expected.
    """
    value = _gap(fine.value, coarse.value)
    params = _gap(fine.grads.params, coarse.grads.params)
    hparams = _gap(fine.grads.hparams, coarse.grads.hparams)
    doubts: list[str] = []
    gap = max(params, hparams)
    if gap > largest_gap:
        doubts.append(f"the gradient changes by {gap:.1e} when steps get twice as long")
    if not torch.equal(fine.status, coarse.status):
        doubts.append("other tasks fail when steps get twice as long")
    ahead, stats = decay.ahead(gap), coarse.stats
    return ErrorEstimate(
        value / ahead, params / ahead, hparams / ahead, gap, decay.order, tuple(doubts), stats
    )


def relative_change(result: Result, other: Result) -> float:
    """The difference of two gradients in units of the first, the larger of params and hparams.

    It is infinite where other tasks have failed, so that they are means over others.
    """
    if not torch.equal(result.status, other.status):
        return math.inf
    return max(
        _gap(result.grads.params, other.grads.params),
        _gap(result.grads.hparams, other.grads.hparams),
    )


def scaled(error: ErrorEstimate, factor: float) -> ErrorEstimate:
    """An error that is larger by a factor."""
    return replace(
        error, value=factor * error.value, params=factor * error.params,
        hparams=factor * error.hparams,
    )  # fmt: skip


def _gap(fine: PyTree, coarse: PyTree) -> float:
    """The difference of all tensors of two trees, in units of the first; 0 if there are none."""
    own, others = ([leaf.detach().double() for leaf in tree.tensors(x)] for x in (fine, coarse))
    size = tree.norm(own)
    gap = tree.norm([a - b for a, b in zip(own, others, strict=True)])
    if gap == 0:
        return 0.0
    return gap / size if size > 0 else math.inf


@dataclass(frozen=True)
class Coarser:
    """A solve like another one, with steps twice as long.

    Attributes:
        choices: as before, with half the nodes where kept states are the mesh.
        problem: as before, on the coarser grid.
        refinement: the steps with their methods, if the solver had chosen them.
        decay: how much larger its error should be.
    """

    choices: Choices
    problem: Problem
    refinement: Refinement | None
    decay: Decay

    @property
    def largest_gap(self) -> float:
        """The relative change up to which it can be trusted to be due to the leading term."""
        if self.refinement is not None:
            chosen = bool(self.refinement.methods)
            return LARGEST_GAP_OF_CHOSEN_STAGES if chosen else LARGEST_GAP_OF_CHOSEN_STEPS
        if self.choices.adjoint.needs_velocity and self.decay.order <= 2:
            return LARGEST_GAP_OF_INTERPOLATED
        return largest_gap(self.decay.order)


def check_estimable(choices: Choices, stop: object) -> None:
    """Raise `CompatibilityError` where the gradient is not that of a flow."""
    adjoint = choices.adjoint
    if isinstance(choices.field, UpdateRule):
        raise CompatibilityError(
            f"estimate_error compares with the flow, but {type(choices.field).__name__} is an"
            " update rule, whose gradient is exact: leave it out."
        )
    if not isinstance(adjoint, LocalAdjoint) or not adjoint.consistent:
        raise CompatibilityError(
            f"estimate_error needs a gradient that converges to the flow's as the steps get"
            f" shorter, which that of {type(adjoint).__name__} does not: use DiscreteAdjoint() or"
            " ContinuousAdjoint(RK4())."
        )
    if stop is not None:
        raise CompatibilityError(
            "estimate_error compares two solves, which would stop at different times: leave out"
            " stop or estimate_error."
        )
    if choices.journal is not None:
        raise CompatibilityError(
            "estimate_error makes a second solve, which Disk(path, resume=True) cannot save:"
            " leave one of them out."
        )


def order_of(choices: Choices) -> int:
    """The order at which the gradient converges to that of the flow."""
    own = choices.adjoint.order
    if own is not None and isinstance(choices.solver, GridSolver) and choices.solver.chooses_steps:
        return own
    return choices.solver.order if own is None else min(own, choices.solver.order)


def coarsen(run: Run) -> Coarser | None:
    """The coarser solve; None if there is but one step."""
    stepper, problem, order = run.stepper, run.problem, order_of(run.choices)
    grid, methods, chosen = problem.grid, tuple[int, ...](), stepper.refinement
    if chosen is not None:
        grid, methods = _accepted(stepper, chosen, grid), chosen.methods
    nodes = _every_second(grid)
    if len(nodes) > grid.steps:
        return None
    half, longer = _thinned(grid, nodes), tuple[int, ...]()
    constants = [[1.0] * grid.steps, [1.0] * half.steps]
    if methods:
        solver, dt = run.kernels.step_solver, grid.dt.reshape(-1, grid.steps)
        longer = tuple(
            solver.combined(methods[start:stop], _growth(dt[:, start:stop]))
            for start, stop in pairwise(nodes)
        )
        constants = [[solver.made_with(m).error_constant for m in own] for own in (methods, longer)]
    refinement = None
    if chosen is not None:
        refinement = Refinement(half.times[..., :-1], half.dt, list(range(half.steps)), longer)
    choices = _coarser_choices(run.choices, order)
    factor = _expected_factor(nodes, order, *constants)
    further = 0.0
    if run.choices.adjoint.exact and chosen is None:  # the steps are the same in both solves
        further = next_term(run.choices.field, run.choices.solver)
    decay = Decay(order, factor, further)
    return Coarser(choices, replace(problem, grid=half), refinement, decay)


def _expected_factor(
    nodes: Sequence[int], order: int, fine: list[float], coarse: list[float]
) -> float:
    r"""By how much the error grows: $2^p$ where every two steps become one of the same method.

    The error of a step is $c\,h^{p+1} y^{(p+1)}$; single steps are taken to be alike but for c.
    """
    lengths = [stop - start for start, stop in pairwise(nodes)]
    pairs = zip(lengths, coarse, strict=True)
    return sum(c * length ** (order + 1) for length, c in pairs) / sum(fine)


def _accepted(stepper: SettledStepper, chosen: Refinement, grid: TimeGrid) -> TimeGrid:
    """The steps that were made, with the observed states at their new indices."""
    steps = chosen.to_grid(grid)
    places = {stepper.grid_index(k): k for k in range(steps.steps + 1)}
    return TimeGrid(steps.times, [places[index] for index in grid.observe], dt=steps.dt)


def _every_second(grid: TimeGrid) -> list[int]:
    """Every second node, counted back from the end and from each observed one.

    Where a number of steps is odd the first stays single, since chosen steps tend to grow.
    """
    ends = sorted({0, grid.steps, *grid.observe})
    nodes = {node for start, stop in pairwise(ends) for node in range(stop, start, -2)}
    return sorted({0, *nodes})


def _thinned(grid: TimeGrid, nodes: Sequence[int]) -> TimeGrid:
    dt = [grid.dt[..., start:stop].sum(-1) for start, stop in pairwise(nodes)]
    observe = [nodes.index(index) for index in grid.observe]
    return TimeGrid(grid.times[..., list(nodes)], observe, dt=torch.stack(dt, dim=-1))


def _coarser_choices(choices: Choices, order: int) -> Choices:
    if not choices.replays:
        choices = replace(choices, checkpoints=choices.checkpoints.coarser())
    if isinstance(choices.solver, GridSolver):
        choices = replace(choices, solver=choices.solver.coarser(2.0**order))
    return replace(choices, safety=replace(choices.safety, probe=False))


def _growth(dt: Tensor) -> list[float]:
    """By how much the sum of some steps is longer than each of them, at most for any task."""
    safe = torch.where(dt > 0, dt, torch.inf)
    return (dt.sum(-1, keepdim=True) / safe).amax(0).tolist()
