"""A forward sweep that has been judged and can be pulled back: what every call stands on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

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
from odeopt.errors import AllFailed, DivergenceError, OdeoptError, StabilityError
from odeopt.solver.dynamics import Theta
from odeopt.tools import tree


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
        finite = torch.isfinite(run.trajectory.y_end).all(-1)
        self.status = torch.where(finite, int(Status.OK), int(Status.STATE_NOT_FINITE))
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

    @cached_property
    def visible(self) -> bool:
        """Whether the status can be looked at; asked once, for to ask waits for the device."""
        return is_visible(self.status)

    def note(self, failed: Tensor, code: Status) -> None:
        """Give tasks that were well and failed now a code, for any of many outer losses."""
        if failed.ndim > self.status.ndim:
            failed = failed.any(0)
        self.status = torch.where((self.status == Status.OK) & failed, int(code), self.status)

    def note_infinite(self, gradients: list[Tensor], code: Status, lead: int = 0) -> None:
        """Note where gradients are not finite: those of each task, of any further shape.

        Args:
            gradients: of shape [losses, tasks, ...] with many outer losses, else [tasks, ...].
            code: what to note.
            lead: 1 with many outer losses, else 0.
        """
        for gradient in gradients:
            finite = torch.isfinite(gradient)[..., None].flatten(lead + self.status.ndim).all(-1)
            self.note(~finite, code)

    def check(self) -> None:
        """Raise the error of the first task that has failed, if it can be seen.

        Nothing is raised where failed tasks are skipped.
        """
        if not self._skips and self.visible:
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
        run, length = self.run, self.run.stepper.length
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

    def pull(
        self, lam: Tensor, by_step: dict[int, Tensor], stats: Stats, chunk_size: int | None = None
    ) -> Swept:
        """Make the backward sweep, and judge it where values can be seen.

        Args:
            lam: the gradient w.r.t. the final state, shape [d] or [tasks, d]; with many outer
                losses [losses, d] or [losses, tasks, d].
            by_step: gradients w.r.t. observed states, by step, without the last.
            stats: the cost is added to it.
            chunk_size: how many of many losses are pulled at once, see `run_backward`.

        Raises:
            NondeterminismError: if a step that was made again is not what it was.
        """
        swept, self.trace = run_backward(self.run, lam, by_step, stats, chunk_size)
        self._swept, lead = swept, lam.ndim - self.run.problem.y0.ndim
        if is_visible(swept.lam):
            self.note_infinite([lam, *by_step.values()], Status.OUTER_GRADIENT_NOT_FINITE, lead)
            check_replay(self.run, self.trace)
            gradients = tree.tensors((swept.lam, swept.dt, swept.theta))
            self.note_infinite(gradients, Status.ADJOINT_NOT_FINITE, lead)
            for _, values, limit, code in self._limits(swept):
                self.note((values > limit).any(0), code)
        return swept

    def _limits(self, swept: Swept) -> list[tuple[str, Tensor, float, Status]]:
        """(name, values of shape [pulls] or [pulls, tasks], limit, code) of checks that are on."""
        trace, safety = self.trace, self.run.choices.safety
        checks: list[tuple[str, Tensor, float | None, Status]] = []
        if trace.spectral:
            checks.append(("spectral", torch.stack(trace.spectral), 1.0, Status.UNSTABLE))
        if trace.starts:
            read = trace.read(swept.growth)
            checks.append(("step_ratio", read.step_ratio, safety.step_ratio, Status.UNSTABLE))
            checks.append(("defect", read.defect, safety.defect, Status.STATE_TOO_COARSE))
        if not trace.exact:
            mismatch, growth = swept.mismatch[None], swept.growth[None]
            checks.append(("mismatch", mismatch, safety.defect, Status.STATE_TOO_COARSE))
            checks.append(("growth", growth, safety.growth, Status.UNSTABLE))

        def worst(values: Tensor) -> Tensor:
            """Of many outer losses."""
            return values.amax(1) if values.ndim > self.status.ndim + 1 else values

        return [
            (name, worst(values), limit, code)
            for name, values, limit, code in checks
            if limit is not None
        ]

    def _raise(self) -> None:
        """Raise the error of the first task that failed, if one did."""
        codes: list[int] = self.status.reshape(-1).tolist()
        failed = [index for index, code in enumerate(codes) if code != Status.OK]
        if not failed:
            return
        task = failed[0]
        who = "" if self.run.problem.tasks is None else f"task {task}: "
        if len(failed) > 1:
            who = f"tasks {', '.join(map(str, failed))} failed; {who}"
        code = Status(codes[task])
        unstable = code in (Status.UNSTABLE, Status.STATE_TOO_COARSE)
        kind = StabilityError if unstable else DivergenceError
        raise kind(who + self._why(code, task))

    def _why(self, code: Status, task: int) -> str:
        if code is Status.STATE_NOT_FINITE:
            return self._where_state_fails(task)
        if code is Status.VALUE_NOT_FINITE or code is Status.OUTER_GRADIENT_NOT_FINITE:
            return _OUTER[code]
        assert self._swept is not None, "only a backward sweep gives these codes"
        if code is Status.ADJOINT_NOT_FINITE:
            return self._where_adjoint_fails(self._swept, task)
        for name, values, limit, own in self._limits(self._swept):
            column = values.reshape(values.shape[0], -1)[:, task]
            over = (column > limit).nonzero().flatten().tolist()
            if own is code and over:
                start = self.trace.starts[over[0]] if self.trace.starts else 0
                where = f"the interval from state {start} (t = {self._time(start, task):g})"
                return _ADVICE[name].format(where=where, value=column[over[0]].item(), limit=limit)
        raise AssertionError("a status is set only where a limit is exceeded")

    def _where_state_fails(self, task: int) -> str:
        """Run the forward sweep again and look at each state."""
        stepper, problem = self.run.stepper, self.run.problem
        y = problem.y0
        for step in range(stepper.length):
            y = stepper.advance(step, y)
            row = y if problem.tasks is None else y[task]
            if not bool(torch.isfinite(row).all()):
                return (
                    f"the state is not finite after step {step} (t = {self._time(step, task):g})."
                    " The inner optimisation diverges: take smaller steps (a lower learning rate or"
                    " a finer grid), or look for a loss that is not finite."
                )
        return "the final state is not finite: take smaller steps."

    def _where_adjoint_fails(self, swept: Swept, task: int) -> str:
        norms = self.trace.read(swept.growth).norm
        for start, norm in zip(self.trace.starts, norms, strict=True):
            if not bool(torch.isfinite(norm.reshape(-1, self.status.numel())[:, task]).all()):
                return (
                    f"the adjoint variable is not finite before state {start}"
                    f" (t = {self._time(start, task):g}), though the states are: the backward sweep"
                    " blows up. Keep more states, use DiscreteAdjoint(), or look for second"
                    " derivatives that are not finite (a square root or norm at zero)."
                )
        lam = swept.lam if self.run.problem.tasks is None else swept.lam[..., task, :]
        if not bool(torch.isfinite(lam).all()):
            return (
                "the adjoint variable is not finite: the backward sweep blows up. Use"
                " DiscreteAdjoint(), or look for second derivatives that are not finite."
            )
        return (
            "a gradient is not finite, though the states and the adjoint variable are: look for"
            " square roots, norms and logarithms at zero in the way that the inner loss uses"
            " hparams."
        )

    def _time(self, step: int, task: int) -> float:
        times = self.run.stepper.time(step).reshape(-1)
        return times[0 if self.run.problem.tasks is None else task].item()


_OUTER = {
    Status.VALUE_NOT_FINITE: (
        "the outer loss is not finite at a finite final state: look for logarithms, divisions or"
        " square roots at zero in it."
    ),
    Status.OUTER_GRADIENT_NOT_FINITE: (
        "the gradient of the outer loss is not finite, though its value is: look for square roots,"
        " norms and logarithms at zero in it."
    ),
}
_ADVICE = {
    "spectral": (
        "{where} is {value:.2f} times as long as the stability limit for the estimated spectral"
        " radius: take smaller steps (a lower learning rate, a finer grid or denser checkpoints)."
    ),
    "step_ratio": (
        "{where} is too long for the backward method: step times rate of the adjoint is"
        " {value:.2f} times its stability limit. Keep more states, evenly spread, or use"
        " DiscreteAdjoint(), which is stable wherever the solver is."
    ),
    "defect": (
        "the state interpolated over {where} misses the flow by {value:.2f} of the way it goes"
        " (limit {limit:g}): keep more states, use Graded(n), or use DiscreteAdjoint()."
    ),
    "mismatch": (
        "solving backward missed the initial state by {value:.1e} of the way from it to the final"
        " one (limit {limit:g}): the reconstructed states, and the gradient with them, cannot be"
        " trusted. Use DiscreteAdjoint(), or ContinuousAdjoint(RK4()) on kept states."
    ),
    "growth": (
        "the adjoint variable grew by {value:.1e} in the backward sweep (limit {limit:g}), which"
        " is a sign of instability: keep more states, use DiscreteAdjoint() in place of an"
        " approximate adjoint, or raise Safety.growth if such growth is real."
    ),
}


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
        lead = swept.lam.shape[: swept.lam.ndim - problem.y0.ndim]
        return tree.map_tensors(lambda leaf: leaf.new_zeros((*lead, *leaf.shape)), problem.theta)
    return swept.theta._replace(shared=tuple(over_tasks(leaf) for leaf in swept.theta.shared))


def drop_failed(swept: Swept, ok: Tensor) -> Swept:
    """The gradients with zeros for tasks that failed; `ok` has shape [] or [tasks]."""
    gradients = (swept.lam, swept.t, swept.dt, swept.theta)
    lam, t, dt, theta = tree.map_tensors(partial(tree.zero_unless, ok), gradients)
    return swept._replace(lam=lam, t=t, dt=dt, theta=theta)
