r"""Early stopping at an event, and what it adds to the gradient.

A solve that stops where $g(u) = 0$ has a length that depends on everything the state depends on.
With the last step of length s, $y_1 = S(y_0, s)$ and $g(y_1) = 0$, the chain rule gives
$dJ = \nabla J^\top S_y\,dy_0 - c\,\nabla g^\top S_y\,dy_0$ with
$c = \frac{\nabla J^\top S_s}{\nabla g^\top S_s}$: the gradient of $J - c\,g$ for a fixed s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.adjoint.base import Interval, LocalAdjoint
from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.engine.kernels import Scalars
from odeopt.engine.problem import Problem
from odeopt.engine.run import Choices, make_kernels
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper
from odeopt.errors import CapturedTensorError, CompatibilityError, InputError, StabilityError
from odeopt.gradient.outer_loss import OuterGradients, OuterKernel, OuterLoss
from odeopt.grid import TimeGrid
from odeopt.inner.stream import Stream
from odeopt.solver.base import StepSolver
from odeopt.tools import tree
from odeopt.tools.arguments import Selector, call_loss, check_selector, select
from odeopt.tools.shown import Shown, shown
from odeopt.tools.transforms import any_requires_grad
from odeopt.tools.types import Loss, PyTree, Tensors

LIMIT = 100
"""The most evaluations; the method needs about ten."""


def find_crossing(
    value: Callable[[Tensor], Tensor], high: Tensor, g_low: Tensor, g_high: Tensor, active: Tensor
) -> Tensor:
    r"""Where g comes down to zero between 0 and `high`, to rounding, by the Illinois method.

    Superlinear, and never outside the bracket.

    Args:
        value: g, from shape [] or [tasks] to the same.
        high: the upper end.
        g_low: g(0), positive for active tasks.
        g_high: g(high), zero or negative for active tasks.
        active: the tasks that matter; the others get `high`.

    References:
        Dowell and Jarratt 1971, "A modified regula falsi method for computing the root of an
        equation", BIT 11.
    """
    low, end = torch.zeros_like(high), high
    tiny = 4 * torch.finfo(high.dtype).eps
    done = ~active | (g_high == 0)
    was_above = torch.zeros_like(done)
    was_below = torch.zeros_like(done)
    for _ in range(LIMIT):
        if bool(done.all()):
            break
        slope = torch.where(done, -torch.ones_like(g_low), g_high - g_low)
        x = torch.where(done, high, (low * g_high - high * g_low) / slope)
        g = value(x)
        above, below = ~done & (g > 0), ~done & ~(g > 0)
        g_high = torch.where(above & was_above, g_high / 2, g_high)  # the end that stays behind
        g_low = torch.where(below & was_below, g_low / 2, g_low)
        low, g_low = torch.where(above, x, low), torch.where(above, g, g_low)
        high, g_high = torch.where(below, x, high), torch.where(below, g, g_high)
        was_above, was_below = above, below
        done = done | (high - low <= tiny * high) | (below & (g == 0))
    return torch.where(active, high, end)


@dataclass(frozen=True, eq=False)
class StopWhen(Shown):
    r"""Stop where a function of the parameters comes down to zero, each task at its own time.

    The last step is cut to the length at which $g = 0$, to rounding. The gradients are those of
    the outer loss at the end with the change of the stopping time included (for fixed-step
    solvers and update rules, exactly). To stop at the minimum of the outer loss itself no
    correction is needed, since it does not change to first order (`TaskHorizon`). Step sizes from
    the one that is cut on have no influence, and a gradient of zero.

    Costs one evaluation of g per step and about ten more with as many steps for the last length,
    beside the solve itself, which is made twice up to the end.

    Args:
        event: `event(params, batch)` or `event(params, batch, hparams)`, a scalar; the solve goes
            on while it is positive, and to the end of the grid if it stays so.
        batch: what the event looks at; the batch of the solve if it is None. It has no gradient.

    Raises:
        InputError: if the event is no function.
        CapturedTensorError: in the solve, if what the event looks at requires grad.
        CompatibilityError: in the solve, with a solver that chooses its steps, an adjoint that is
            not exact or leaves steps out, or observed states.
        StabilityError: in the solve, if the event is touched rather than crossed.

    References:
        Chen, Amos and Nickel 2021, "Learning Neural Event Functions for Ordinary Differential
        Equations", arXiv 2011.03902.
    """

    event: Loss
    batch: PyTree = None

    def __post_init__(self) -> None:
        if not callable(self.event):
            raise InputError(
                f"event is {shown(self.event)}; expected a function of (params, batch)."
            )

    @classmethod
    def loss_below(cls, loss: Loss, threshold: Selector, batch: PyTree = None) -> StopWhen:
        """Stop where a loss comes down to a threshold, a number or a selector of hparams."""
        check_selector(threshold, "threshold")

        def event(params: PyTree, batch: PyTree, hparams: PyTree = None) -> Any:
            return call_loss(loss, hparams, params, batch) - select(threshold, hparams, "threshold")

        return cls(event, batch)


class Crossing(NamedTuple):
    """Where a solve stops."""

    step: Tensor
    """The index of the last step, N for tasks that go on to the end; shape [] or [tasks]."""
    start: Tensor
    """The time at its start."""
    length: Tensor
    """Its length."""
    before: Tensor
    """The state at its start."""


class Stopping:
    """A `StopWhen` in one call.

    Attributes:
        crossing: where each task stops.
        problem: the problem with each task's own last step.
    """

    def __init__(
        self, stop: StopWhen, choices: Choices, problem: Problem, batch: PyTree,
        hparams_tree: Callable[[Tensors], PyTree], hparams: Tensors, stats: Stats,
    ) -> None:  # fmt: skip
        _check(stop, choices, problem)
        self._whole, self._grid, self._stats = problem, problem.grid, stats
        self._batch = tree.map_tensors(Tensor.detach, batch if stop.batch is None else stop.batch)
        self._hparams, event = hparams, OuterLoss(stop.event, has_aux=False)
        layout, tasks = problem.layout.state, problem.tasks
        self._event = OuterKernel(event, choices.field, layout, hparams_tree, tasks)
        self._kernels = make_kernels(choices, problem, Stats())
        self._stepper = FixedStepper(self._kernels, self._grid, problem.y0.dtype, stats)
        self.crossing, self._final = self._locate()
        self.problem = replace(problem, grid=self._cut_grid())

    def report(self) -> dict[str, Tensor]:
        """The stopping time and how many steps were begun, by name."""
        steps = torch.clamp(self.crossing.step + 1, max=self._grid.steps)
        return {"stop_time": self.problem.grid.times[..., -1], "stop_step": steps}

    def keep_made(self, g_dt: Tensor) -> Tensor:
        """Gradients w.r.t. step sizes, zero from the step that was cut on: none of them counts."""
        steps = torch.arange(self._grid.steps, device=g_dt.device)
        return torch.where(steps < self.crossing.step[..., None], g_dt, torch.zeros_like(g_dt))

    def correct(self, outer: OuterGradients) -> OuterGradients:
        """The gradients of J - c g in place of those of J."""
        event = self._differentiate(self._final)
        c = self._ratio(outer.states[-1], event.states[-1])
        states = [
            own - c[..., None] * other
            for own, other in zip(outer.states, event.states, strict=True)
        ]
        hparams = tuple(
            own - c.reshape(c.shape + (1,) * (own.ndim - c.ndim)) * other
            for own, other in zip(outer.hparams, event.hparams, strict=True)
        )
        return outer._replace(states=states, hparams=hparams)

    def _cut_grid(self) -> TimeGrid:
        grid, (step, _, length, _) = self._grid, self.crossing
        last = torch.arange(grid.steps, device=step.device) == step[..., None]
        dt = torch.where(last, length[..., None].to(grid.dt.dtype), grid.dt)
        times = torch.cat([grid.times[..., :1], grid.times[..., :1] + dt.cumsum(-1)], dim=-1)
        return TimeGrid(times, dt=dt).stopping(step + (length > 0))

    def _ratio(self, g_outer: Tensor, g_event: Tensor) -> Tensor:
        """C, zero for tasks that went on to the end or never began."""
        (step, start, length, before), pull = self.crossing, self._kernels.pull(DiscreteAdjoint())
        c = torch.zeros_like(g_outer[..., 0])
        for k in self._last_steps(step):
            here = (step == k) & (length > 0)
            dt = torch.where(here, length, torch.ones_like(length))
            interval = Interval(self._stepper.time(k), dt, before, before)
            pulls = (pull(k, interval, lam) for lam in (g_outer, g_event))
            top, bottom = (Scalars.of(pulled.scalars).dt for pulled in pulls)
            self._stats.hvps += 1 + c.numel() // start.numel()
            self._check_crossed(here, bottom, g_event)
            c = torch.where(here, top / torch.where(here, bottom, torch.ones_like(bottom)), c)
        return c

    def _check_crossed(self, here: Tensor, rate: Tensor, g_event: Tensor) -> None:
        scale = torch.linalg.vector_norm(g_event, dim=-1)
        flat = here & ~(rate < -torch.finfo(rate.dtype).eps * scale)
        if bool(flat.any()):
            raise StabilityError(
                "the event is touched rather than crossed (it does not decrease along the last"
                " step), so that the stopping time has no derivative. Choose another threshold."
            )

    def _locate(self) -> tuple[Crossing, Tensor]:
        """Where each task stops, and its final state."""
        y, steps = self._whole.y0, self._grid.steps
        value = self._differentiate(y).values
        begun, zero = value > 0, torch.zeros_like(value)
        step, start, length, before = torch.where(begun, steps, 0), zero, zero, y
        for k in range(steps):
            if not bool((begun & (step == steps)).any()):
                break
            after = self._stepper.advance(k, y)
            value_after = self._differentiate(after).values
            crossed = begun & (step == steps) & (value_after <= 0)
            if bool(crossed.any()):
                cut = self._cut(k, y, value, value_after, crossed)
                step = torch.where(crossed, k, step)
                start = torch.where(crossed, self._stepper.time(k), start)
                length = torch.where(crossed, cut, length)
                before = torch.where(crossed[..., None], y, before)
            y, value = after, value_after
        crossing = Crossing(step, start, length, before)
        return crossing, self._end(crossing, y)

    def _end(self, crossing: Crossing, y: Tensor) -> Tensor:
        """The final state of each task."""
        step, _, length, before = crossing
        for k in self._last_steps(step):
            here = (step == k) & (length > 0)
            after = self._kernels.step()(k, self._stepper.time(k), length, before)
            y = torch.where(here[..., None], after, y)
        never = (step == 0) & (length == 0)
        return torch.where(never[..., None], self._whole.y0, y)

    def _cut(self, k: int, y: Tensor, g0: Tensor, g1: Tensor, crossed: Tensor) -> Tensor:
        """The length of step k at which the event is zero, per task."""
        step, t = self._kernels.step(), self._stepper.time(k)

        def value(length: Tensor) -> Tensor:
            self._stats.gradient_evaluations += self._kernels.step_solver.stages
            return self._differentiate(step(k, t, length, y)).values

        high = self._grid.dt[..., k].to(y.dtype)
        return find_crossing(value, high, g0, g1, crossed)

    def _last_steps(self, step: Tensor) -> list[int]:
        present: list[int] = torch.unique(step).tolist()
        return [k for k in present if k < self._grid.steps]

    def _differentiate(self, y: Tensor) -> OuterGradients:
        """The event at a state, and its gradients."""
        return self._event([y], self._batch, self._hparams)


def _check(stop: StopWhen, choices: Choices, problem: Problem) -> None:
    solver = type(choices.solver).__name__
    if not isinstance(choices.solver, StepSolver) or choices.solver.chooses_steps:
        raise CompatibilityError(
            f"StopWhen cuts a step of the grid, but {solver} chooses its own steps: use an update"
            " rule or a solver with fixed steps."
        )
    if not isinstance(choices.adjoint, LocalAdjoint) or not choices.adjoint.pulls_steps:
        raise CompatibilityError(
            "StopWhen needs the derivative of the last step, which"
            f" {type(choices.adjoint).__name__} does not have: use DiscreteAdjoint()."
        )
    if choices.adjoint.first_step(problem.grid.steps) > 0:
        raise CompatibilityError(
            f"{type(choices.adjoint).__name__} leaves steps out, on which the time of the event"
            " depends as well: use DiscreteAdjoint()."
        )
    if problem.grid.observe:
        raise CompatibilityError("StopWhen cannot be used with a grid that observes states.")
    own = stop.batch is not None
    if any_requires_grad(stop.batch) if own else problem.theta.batch:
        raise CapturedTensorError(
            "the event looks at a batch that requires grad, but its part in that gradient would be"
            " lost: pass what is differentiated in hparams, or give the event a batch of its own,"
            " e.g. StopWhen(event, batch=(x, y.detach()))."
        )
    if stop.batch is None and isinstance(problem.stream, Stream):
        raise InputError(
            "the batch is a Stream, which has no batch for the event: pass one, e.g."
            " StopWhen(event, batch=(x, y))."
        )
