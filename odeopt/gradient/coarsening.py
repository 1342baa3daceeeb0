"""The same solve with steps twice as long, to estimate an error from the difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odeopt.adjoint.base import LocalAdjoint
from odeopt.engine.choices import Choices
from odeopt.engine.problem import Problem
from odeopt.engine.run import Run
from odeopt.engine.steppers import Refinement, SettledStepper
from odeopt.errors import CompatibilityError
from odeopt.grid import TimeGrid
from odeopt.inner.field import GradientField
from odeopt.inner.rule import UpdateRule
from odeopt.solver.base import GridSolver, Solver, StepSolver


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
        solver = run.kernels.step_solver
        longer = _methods_of_longer_steps(solver, grid, nodes, methods)
        constants = [[solver.made_with(m).error_constant for m in own] for own in (methods, longer)]
    refinement = None
    if chosen is not None:
        refinement = Refinement(half.times[..., :-1], half.dt, list(range(half.steps)), longer)
    choices = _coarser_choices(run.choices, order)
    factor = _expected_factor(nodes, order, *constants)
    decay = Decay(order, factor, _next_term(run))
    return Coarser(choices, replace(problem, grid=half), refinement, decay)


def _next_term(run: Run) -> float:
    """See `Decay`; known for the exact adjoint of steps that are the same in both solves."""
    if not run.choices.adjoint.exact or run.stepper.refinement is not None:
        return 0.0
    return next_term(run.choices.field, run.choices.solver)


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


def _methods_of_longer_steps(
    solver: StepSolver, grid: TimeGrid, nodes: Sequence[int], methods: tuple[int, ...]
) -> tuple[int, ...]:
    """What makes steps put together from several, as stable as the single ones were."""
    dt = grid.dt.reshape(-1, grid.steps)
    found: list[int] = []
    for start, stop in pairwise(nodes):
        found.append(solver.combined(methods[start:stop], _growth(dt[:, start:stop])))
    return tuple(found)


def _growth(dt: Tensor) -> list[float]:
    """By how much the sum of some steps is longer than each of them, at most for any task."""
    safe = torch.where(dt > 0, dt, torch.inf)
    return (dt.sum(-1, keepdim=True) / safe).amax(0).tolist()
