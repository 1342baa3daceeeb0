"""The conformance suites of solvers and of the controllers of their steps."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import inf, log2, log10, nan
from typing import Any, TypeVar

import torch
from torch import Tensor

from odeopt.adjoint.linearize import ReverseMode
from odeopt.engine.flat import BoundField, Layout
from odeopt.engine.problem import start
from odeopt.grid import TimeGrid
from odeopt.inner.flows import GradientFlow
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.base import GridSolver, Reached, Solver, Stepping, StepSolver, reached
from odeopt.solver.dynamics import Data, Theta
from odeopt.solver.error_control import Attempt, ErrorControlled, PIController
from odeopt.testing.problems import (
    CallCounter,
    Quadratic,
    check_close,
    check_vmap,
    number,
    relative_error,
    smooth_problem,
)
from odeopt.tools.tree import is_differentiable, partition

Controlled = TypeVar("Controlled", bound=ErrorControlled)


def check_solver(solver: Solver, device: torch.device | None = None) -> None:
    """Check a solver; raises AssertionError with what is wrong.

    A step of zero length is the identity; the error falls at the stated order; the number of
    stages and the stability limit are as stated; `pull` is the exact gradient of `step`, and the
    `end` that it reports is where the step leads; both work under vmap. Of a grid solver, the
    accuracy and the shapes are checked.

    An attempt of an `ErrorControlled` solver leads where its step does, and its error falls with
    the step and the tolerance. If it `chooses_steps`, its controller passes `check_controller`,
    and the errors of whole solves follow the tolerance.

    Args:
        solver: an instance.
        device: where to compute.
    """
    if isinstance(solver, GridSolver):
        _check_grid_solver(solver, device)
        return
    assert isinstance(solver, StepSolver), f"{solver!r} is neither a StepSolver nor a GridSolver"
    stepping, y0 = _stepping(device)
    _check_zero_step(solver, stepping, y0)
    _check_stages(solver, stepping, y0)
    _check_order(solver, stepping, y0)
    _check_pull(solver, stepping, y0)
    _check_vmap(solver, stepping, y0)
    _check_stability(solver, device)
    if isinstance(solver, ErrorControlled):
        _check_attempt(solver, stepping, y0)
        _check_first_step(solver, stepping, y0)
        _check_estimate(_with_tolerance(solver, 1e-3), stepping, y0)
        _check_attempts_of_tasks(solver, stepping, y0)
    if solver.chooses_steps:
        assert isinstance(solver, ErrorControlled), (
            f"{type(solver).__name__} says that it chooses its steps, but is not ErrorControlled:"
            " it would be given the steps of the grid"
        )
        check_controller(solver.tolerances.controller, solver.error_order, device)
        check_chosen_steps(solver, device)


def _stepping(device: torch.device | None) -> tuple[Stepping, Tensor]:
    problem = smooth_problem(device)
    begin = start(GradientFlow(problem.loss), problem.params, None, is_differentiable)
    layout, diff, data = partition(problem.batch)
    flat = BoundField(GradientFlow(problem.loss), Layout(begin.state, begin.shared, layout))
    theta, fixed = Theta(begin.diff, diff), Data(begin.data, data)

    return Stepping(flat, ReverseMode().linearize, theta, fixed), begin.y0


def _check_zero_step(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    zero = number(0.0, y0)
    assert torch.equal(solver.step(stepping.velocity, zero, zero, y0), y0), (
        "a step of zero length changes the state"
    )


def _check_stages(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    counted = CallCounter(stepping.velocity)
    solver.step(counted, number(0.0, y0), number(0.1, y0), y0)
    assert counted.calls == solver.stages, (
        f"a step evaluates the velocity {counted.calls} times, not stages times"
    )


def _march(solver: StepSolver, stepping: Stepping, y: Tensor, t1: float, steps: int) -> Tensor:
    dt = number(t1 / steps, y)
    for k in range(steps):
        y = solver.step(stepping.velocity, number(k * t1 / steps, y), dt, y)
    return y


def _check_order(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    counts = (4, 8, 16)
    reference = _march(solver, stepping, y0, 1.0, 256 if solver.order > 1 else 2048)
    errors = [
        relative_error(_march(solver, stepping, y0, 1.0, count), reference) for count in counts
    ]
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > solver.order - 0.3, (
        f"the error falls with slopes {slopes}, not {solver.order}"
    )


def _check_pull(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    t, dt = number(0.2, y0), number(0.3, y0)
    lam = torch.sin(torch.arange(len(y0), device=y0.device).to(y0))

    def stepped(t: Tensor, dt: Tensor, y: Tensor, theta: Theta) -> Tensor:
        field, data = stepping.field, stepping.data
        return solver.step(lambda s, u: field.velocity(s, u, theta, data), t, dt, y)

    expected: Any = torch.func.vjp(stepped, t, dt, y0, stepping.theta)[1](lam)
    pulled = solver.pull(stepping, t, dt, y0, lam)
    gradients = pulled.t, pulled.dt, pulled.lam, pulled.theta
    check_close(gradients, expected, 1e-12, "pull is not the gradient of step")
    end = solver.step(stepping.velocity, t, dt, y0)
    _check_end(pulled.end, y0, end)
    recorded = solver.record(stepping, t, dt, y0)
    assert torch.equal(recorded.end, end), "record leads elsewhere than step"
    for _ in range(2):
        again = recorded.pullback(lam)
        gradients = again.t, again.dt, again.lam, again.theta
        check_close(gradients, expected, 1e-12, "record's pullback is not the gradient of step")


def _check_end(end: Reached | None, y0: Tensor, y1: Tensor) -> None:
    if end is None:
        return
    expected = reached(y1)
    shapes = [(tuple(of.entries.shape), of.of) for of in (end, expected)]
    assert shapes[0] == shapes[1], (
        f"the end that pull reports has the entries and size {shapes[0]}; expected {shapes[1]}, as"
        " reached(y1) has"
    )
    gap = end.gap(y0, y1).item()
    assert gap <= 1, (
        f"the end that pull reports is not where step leads: the gap is {gap:.1e} times what"
        " rounding explains"
    )


def _check_vmap(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    lengths = torch.tensor([0.0, 0.1, 0.3], dtype=y0.dtype, device=y0.device)
    zero = number(0.0, y0)

    def step(dt: Tensor) -> Tensor:
        return solver.step(stepping.velocity, zero, dt, y0)

    check_vmap(step, lengths, 1e-12, "the step")


def _check_stability(solver: StepSolver, device: torch.device | None) -> None:
    like = torch.ones(1, dtype=torch.float64, device=device)
    for factor, stable in ((0.95, True), (1.1, False)):
        dt = number(factor * solver.stability_limit, like)
        size = solver.step(lambda t, y: -y, number(0.0, like), dt, like).abs().item()
        assert (size <= 1) is stable, (
            f"a decaying mode is multiplied by {size:.2f} at {factor} times stability_limit"
        )


def _check_grid_solver(solver: GridSolver, device: torch.device | None) -> None:
    problem = Quadratic.from_spectrum([0.2, 1.0, 3.0])
    y0 = torch.ones(2, 3, dtype=torch.float64, device=device)
    center, matrix = problem.center.to(y0), problem.matrix.to(y0)
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, device=device)
    states, evaluations = solver.solve(lambda t, y: -(y - center) @ matrix, times, y0)
    assert states.shape == (3, 2, 3), f"states have shape {tuple(states.shape)}, not (3, 2, 3)"
    assert torch.equal(states[0], y0), "the first state is not the initial one"
    assert evaluations > 0, "no evaluation was counted"
    check_close(states[2, 0], problem.flow(y0[0], 2.0), 1e-2, "the final state is wrong")


def check_controller(
    controller: PIController, order: int = 4, device: torch.device | None = None
) -> None:
    """Check a step controller; raises AssertionError with what is wrong.

    Its factor is positive and finite whatever the error is; it lengthens a step whose error is
    tiny and shortens one that is rejected; steps that are far too short or too long come to the
    length that the tolerance allows. Tasks are independent, unless it pools their errors.

    Args:
        controller: an instance.
        order: the order of the error estimate that it will be used with.
        device: where to compute.
    """
    _check_factors(controller, order, device)
    _check_pool(controller, device)
    for first in (1e-3, 1e3):
        _check_settling(controller, order, first, device)


def check_chosen_steps(solver: ErrorControlled, device: torch.device | None = None) -> None:
    """Check whole solves: their errors follow the tolerance.

    Args:
        solver: an instance with `chooses_steps`.
        device: where to compute.
    """
    tolerances = (1e-3, 1e-5, 1e-7)
    errors = [_final_error(_with_tolerance(solver, tol), device) for tol in tolerances]
    expected = solver.order / (solver.error_order + 1)
    assert errors[-1] < 30 * tolerances[-1] ** expected, (
        f"with a first step as long as the horizon and a tolerance of {tolerances[-1]:.0e} the"
        f" final state is off by {errors[-1]:.1e}: steps are accepted that should not be"
    )
    slope = log10(max(errors[0], 1e-15) / max(errors[-1], 1e-15)) / 4
    assert slope > expected - 0.3, (
        f"the errors {_listed(errors)} fall like the tolerances {_listed(tolerances)} to the power"
        f" of {slope:.2f}; expected {expected:.2f}, which is order / (error_order + 1)"
    )


def _with_tolerance(solver: Controlled, tolerance: float, first: float | None = None) -> Controlled:
    """The same solver with other tolerances, and another first step."""
    own = copy.copy(solver)
    own.tolerances = replace(
        solver.tolerances, rtol=tolerance, atol=tolerance, first_step=first, max_steps=100_000
    )
    return own


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:.1e}" for each in numbers)


def _attempt(solver: ErrorControlled, stepping: Stepping, dt: float, y0: Tensor) -> Attempt:
    t, length = number(0.2, y0), number(dt, y0)
    return solver.attempt(stepping.velocity, t, length, y0, stepping.velocity(t, y0))


def _check_attempt(solver: ErrorControlled, stepping: Stepping, y0: Tensor) -> None:
    t = number(0.2, y0)
    slope = stepping.velocity(t, y0)
    for length in (0.1, 0.3):
        dt, counted = number(length, y0), CallCounter(stepping.velocity)
        tried = solver.attempt(counted, t, dt, y0, slope)
        assert counted.calls == solver.attempt_gradients, (
            f"an attempt evaluates the velocity {counted.calls} times, but attempt_gradients is"
            f" {solver.attempt_gradients}"
        )
        expected = solver.step(stepping.velocity, t, dt, y0)
        check_close(tried.y, expected, 1e-12, "attempt does not lead where step does")
        slope_there = stepping.velocity(t + dt, tried.y)
        what = "the slope of an attempt is not the velocity at its new state"
        check_close(tried.slope, slope_there, 1e-12, what)


def _check_first_step(solver: ErrorControlled, stepping: Stepping, y0: Tensor) -> None:
    t = number(0.0, y0)
    dt = solver.initial_dt(stepping.velocity, t, y0, stepping.velocity(t, y0))
    assert dt.shape == (), f"the first step size has the shape {tuple(dt.shape)}, not ()"
    assert 0 < dt.item() < inf, f"the first step size is {dt.item()}; expected a positive number"


def _check_estimate(solver: ErrorControlled, stepping: Stepping, y0: Tensor) -> None:
    lengths = (0.2, 0.1, 0.05)
    tries = [_attempt(solver, stepping, dt, y0) for dt in lengths]
    shape = tuple(tries[0].error.shape)
    assert shape == (), f"the error of one state has the shape {shape}, not ()"
    errors = [tried.error.item() for tried in tries]
    assert all(0 < error < inf for error in errors), (
        f"the error estimates of steps of lengths {lengths} are {_listed(errors)}; expected"
        " positive numbers"
    )
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > solver.error_order + 0.6, (
        f"the error estimate falls with slopes {slopes} as steps are halved; expected"
        f" {solver.error_order + 1}, which is error_order + 1"
    )
    finer = [_attempt(_with_tolerance(solver, tol), stepping, 0.2, y0) for tol in (1e-4, 1e-12)]
    ratio = finer[0].error.item() / errors[0]
    assert abs(ratio - 10) < 0.1, (
        f"a tolerance 10 times smaller makes the error {ratio:.3g} times larger; expected 10"
    )
    assert finer[1].error.item() > 1, (
        "a step of 0.2 with a tolerance of 1e-12 has an error of at most 1, and would be accepted"
    )
    _check_honesty(solver, stepping, y0, tries[0])


def _check_honesty(solver: ErrorControlled, stepping: Stepping, y0: Tensor, tried: Attempt) -> None:
    """The estimate is not much smaller than the error."""
    y, t, dt = y0, 0.2, 0.2 / 64
    for k in range(64):
        y = solver.step(stepping.velocity, number(t + k * dt, y0), number(dt, y0), y)
    true = solver.tolerances.ratio(tried.y - y, y0, tried.y).item()
    estimate = tried.error.item()
    assert estimate > 0.1 * true, (
        f"a step of 0.2 has an estimated error of {estimate:.1e} in units of the tolerance, but it"
        f" is off by {true:.1e}"
    )


def _check_attempts_of_tasks(solver: ErrorControlled, stepping: Stepping, y0: Tensor) -> None:
    lengths = torch.tensor([0.05, 0.1, 0.3], dtype=y0.dtype, device=y0.device)
    zero = number(0.0, y0)
    slope = stepping.velocity(zero, y0)

    def attempt(dt: Tensor) -> Attempt:
        return solver.attempt(stepping.velocity, zero, dt, y0, slope)

    check_vmap(attempt, lengths, 1e-9, "the attempt")


def _final_error(solver: ErrorControlled, device: torch.device | None) -> float:
    """The error at the end of a flow that is known."""
    problem, horizon = Quadratic.from_spectrum([0.2, 1.0, 3.0]), 2.0
    begin = torch.ones(3, dtype=torch.float64, device=device)
    first = _with_tolerance(solver, solver.tolerances.rtol, first=horizon)
    opt = ODEOptimizer(GradientFlow(problem.loss), first)
    end = opt.solve(begin, problem.center.to(device), TimeGrid.uniform(horizon, 1)).params
    return relative_error(end, problem.flow(begin, horizon))


def _check_factors(controller: PIController, order: int, device: torch.device | None) -> None:
    values = [0.0, 1e-20, 1e-3, 0.3, 1.0, 1.01, 30.0, 1e8, inf, nan]
    errors = torch.tensor(values, dtype=torch.float64, device=device)
    for before in (1e-4, 1.0):
        previous = torch.full_like(errors, before)
        factors = controller.factor(errors, previous, order)
        assert factors.shape == errors.shape, (
            f"errors of shape {tuple(errors.shape)} lead to factors of shape"
            f" {tuple(factors.shape)}; expected the same"
        )
        for error, factor in zip(values, factors.tolist(), strict=True):
            assert 0 < factor < inf, (
                f"an error of {error:g} leads to the factor {factor}; expected a positive number"
            )
            assert error <= 1 or factor <= 1, (
                f"an error of {error:g}, for which a step is rejected, leads to the factor"
                f" {factor:g}; expected at most 1"
            )
        alone = torch.stack([controller.factor(e, previous[0], order) for e in errors])
        assert torch.allclose(alone, factors, rtol=1e-12, atol=0), (
            "the factor of a task depends on the errors of other tasks; they are for pool()"
        )
    factors = controller.factor(errors, torch.ones_like(errors), order).tolist()
    assert factors[0] > 1, f"an error of 0 leads to the factor {factors[0]:g}: steps never grow"
    for error, factor in list(zip(values, factors, strict=True))[-4:]:
        assert factor < 1, (
            f"an error of {error:g} leads to the factor {factor:g}: the step would be rejected"
            " again and again; expected less than 1"
        )


def _check_pool(controller: PIController, device: torch.device | None) -> None:
    errors = torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64, device=device)
    pooled = controller.pool(errors)
    assert pooled.shape == errors.shape, (
        f"pool makes errors of shape {tuple(errors.shape)} to {tuple(pooled.shape)}; expected the"
        " same"
    )
    single = controller.pool(errors[1]).item()
    assert single == 2.0, f"pool makes the error of a single state, 2, to {single:g}"
    if controller.per_task:
        assert torch.equal(pooled, errors), (
            "pool changes errors, but each task has its own steps (per_task=True)"
        )
        return
    assert bool((pooled == pooled[0]).all()), (
        f"pool makes {pooled.tolist()} of the errors, but all tasks take the same steps"
        " (per_task=False); expected one number"
    )
    assert bool(0.5 <= pooled[0] <= 8.0), (
        f"pool makes {pooled[0].item():g} of errors from 0.5 to 8; expected a mean of them"
    )


def _check_settling(
    controller: PIController, order: int, first: float, device: torch.device | None
) -> None:
    """On a problem whose error is dt to the power of order + 1."""
    dt = torch.full((), first, dtype=torch.float64, device=device)
    previous, accepted = torch.ones_like(dt), False
    for _ in range(100):
        error = dt ** (order + 1)
        accepted = bool(error <= 1)
        dt = dt * controller.factor(error, previous, order)
        previous = error.clamp(min=1e-4) if accepted else previous
    settled = accepted and 0.2 < dt.item() <= 1
    assert settled, (
        f"from {first:g} times the length that the tolerance allows, steps come to"
        f" {dt.item():.3g} times it after 100 attempts; expected 0.2 to 1"
    )
