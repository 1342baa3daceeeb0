"""A forward sweep that has been judged and can be pulled back: what every call stands on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeopt.adjoint.base import Swept
from odeopt.engine.backward import Trace
from odeopt.engine.choices import Choices
from odeopt.engine.problem import Problem
from odeopt.engine.run import Run, check_replay, run_backward, run_forward
from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import Refinement
from odeopt.errors import AllFailed, OdeoptError
from odeopt.gradient.status import (
    backward_status,
    merge,
    outer_status,
    raise_for_status,
    state_status,
)
from odeopt.solver.dynamics import Theta


class Solved:
    """A finished forward sweep, with the status of each task as far as it is known.

    Attributes:
        run: the sweep.
        status: integers of shape [] or [tasks], see `Status`.
        trace: what the backward sweep noticed; empty before it.

    Args:
        run: the sweep.
        skips: whether tasks that fail are left out; else the first one raises. Without tasks a
            failure always raises.
    """

    def __init__(self, run: Run, skips: bool) -> None:
        self.run = run
        self.status = state_status(run.trajectory.y_end)
        self.trace = Trace(exact=True)
        self._skips = skips and run.problem.tasks is not None
        self._swept: Swept | None = None

    @classmethod
    def forward(
        cls, choices: Choices, problem: Problem, stats: Stats, skips: bool,
        refinement: Refinement | None = None,
    ) -> Solved:  # fmt: skip
        """Make the forward sweep, with steps that are known already if given."""
        return cls(run_forward(choices, problem, stats, refinement), skips)

    @property
    def states(self) -> list[Tensor]:
        """The observed states in the order of the grid, then the final one."""
        run, grid = self.run, self.run.problem.grid
        y_end = run.trajectory.y_end
        own = {run.stepper.grid_index(k): y for k, y in run.trajectory.observed.items()}
        own = {**own, 0: run.problem.y0, grid.steps: y_end}
        return [*(own[index] for index in grid.observe), y_end]

    def note(self, failed: Tensor, code: Status) -> None:
        """Give tasks that were well and failed now a code."""
        self.status = merge(self.status, failed, code)

    def check(self) -> None:
        """Raise the error of the first task that has failed, if it can be seen.

        Nothing is raised where failed tasks are skipped.
        """
        if not self._skips and is_visible(self.status):
            self._raise()

    def check_some(self, values: Tensor | None = None) -> None:
        """The same; where failed tasks are skipped, raise if all have failed.

        Args:
            values: the outer losses, for the error; NaN where they are not known yet.
        """
        if self._skips and bool((self.status == Status.OK).any()):
            return
        try:
            self._raise()
        except OdeoptError as error:
            if self._skips:
                unknown = torch.full_like(self.status, torch.nan, dtype=self.run.problem.y0.dtype)
                error.all_failed = AllFailed(unknown if values is None else values, self.status)
            raise

    def seeds(self, cotangents: list[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        """Gradients w.r.t. `states` as one w.r.t. the final state, and others by step."""
        run = self.run
        length = run.stepper.length
        own = {run.stepper.grid_index(k): k for k in run.trajectory.observed}
        own = {**own, 0: 0, run.problem.grid.steps: length}
        *observed, lam = cotangents
        by_step: dict[int, Tensor] = {}
        for index, cotangent in zip(run.problem.grid.observe, observed, strict=True):
            if own[index] == length:
                lam = lam + cotangent
            else:
                by_step[own[index]] = cotangent
        return lam, by_step

    def pull(self, lam: Tensor, by_step: dict[int, Tensor], stats: Stats) -> Swept:
        """Make the backward sweep, and judge it where values can be seen.

        Args:
            lam: the gradient w.r.t. the final state, shape [d] or [tasks, d].
            by_step: gradients w.r.t. observed states, by step, without the last.
            stats: the cost is added to it.

        Raises:
            NondeterminismError: if a step that was made again is not what it was.
        """
        self._swept, self.trace = run_backward(self.run, lam, by_step, stats)
        if is_visible(self._swept.lam):
            self.status = outer_status(self.status, [lam, *by_step.values()])
            check_replay(self.run, self.trace)
            safety = self.run.choices.safety
            self.status = backward_status(self.status, self._swept, self.trace, safety)
        return self._swept

    def _raise(self) -> None:
        raise_for_status(self.status, self.run, self._swept, self.trace)


def is_visible(tensor: Tensor) -> bool:
    """Whether values can be looked at (not so inside `torch.func.vmap`)."""
    try:
        bool((tensor == 0).any())
    except RuntimeError:
        return False
    return True


def theta_gradients(
    problem: Problem, swept: Swept, over_tasks: Callable[[Tensor], Tensor]
) -> Theta:
    """Gradients w.r.t. theta, those of shared inputs put together; zeros where no step was made."""
    if swept.theta is None:
        return Theta(*(tuple(torch.zeros_like(leaf) for leaf in part) for part in problem.theta))
    return swept.theta._replace(shared=tuple(over_tasks(leaf) for leaf in swept.theta.shared))
