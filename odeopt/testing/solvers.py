"""The conformance suite of solvers."""

from __future__ import annotations

from itertools import pairwise
from math import log2
from typing import Any

import torch
from torch import Tensor

from odeopt.adjoint.linearize import ReverseMode
from odeopt.engine.flat import BoundField, Layout
from odeopt.engine.problem import start
from odeopt.inner.flows import GradientFlow
from odeopt.solver.base import GridSolver, Reached, Solver, Stepping, StepSolver, reached
from odeopt.solver.dynamics import Data, Theta
from odeopt.solver.error_control import ErrorControlled
from odeopt.testing.adaptive import check_attempts, check_chosen_steps, check_controller
from odeopt.testing.counted import Counted
from odeopt.testing.problems import Quadratic, relative_error, smooth_problem
from odeopt.tools.tree import is_differentiable, partition


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
        check_attempts(solver, stepping, y0)
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


def _number(value: float, like: Tensor) -> Tensor:
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _check_zero_step(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    zero = _number(0.0, y0)
    assert torch.equal(solver.step(stepping.velocity, zero, zero, y0), y0), (
        "a step of zero length changes the state"
    )


def _check_stages(solver: StepSolver, stepping: Stepping, y0: Tensor) -> None:
    counted = Counted(stepping.velocity)
    solver.step(counted, _number(0.0, y0), _number(0.1, y0), y0)
    assert counted.calls == solver.stages, (
        f"a step evaluates the velocity {counted.calls} times, not stages times"
    )


def _march(solver: StepSolver, stepping: Stepping, y: Tensor, t1: float, steps: int) -> Tensor:
    dt = _number(t1 / steps, y)
    for k in range(steps):
        y = solver.step(stepping.velocity, _number(k * t1 / steps, y), dt, y)
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
    t, dt = _number(0.2, y0), _number(0.3, y0)
    lam = torch.sin(torch.arange(len(y0), device=y0.device).to(y0))

    def stepped(t: Tensor, dt: Tensor, y: Tensor, theta: Theta) -> Tensor:
        field, data = stepping.field, stepping.data
        return solver.step(lambda s, u: field.velocity(s, u, theta, data), t, dt, y)

    expected: Any = torch.func.vjp(stepped, t, dt, y0, stepping.theta)[1](lam)
    found = solver.pull(stepping, t, dt, y0, lam)
    error = relative_error((found.t, found.dt, found.lam, found.theta), expected)
    assert error < 1e-12, f"pull is not the gradient of step: relative error {error:.1e}"
    _check_end(found.end, y0, solver.step(stepping.velocity, t, dt, y0))


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
    zero = _number(0.0, y0)

    def step(dt: Tensor) -> Tensor:
        return solver.step(stepping.velocity, zero, dt, y0)

    together = torch.func.vmap(step)(lengths)
    alone = torch.stack([step(dt) for dt in lengths])
    assert relative_error(together, alone) < 1e-12, "vmap changes the step"


def _check_stability(solver: StepSolver, device: torch.device | None) -> None:
    like = torch.ones(1, dtype=torch.float64, device=device)

    def decay(t: Tensor, y: Tensor) -> Tensor:
        return -y

    for factor, stable in ((0.95, True), (1.1, False)):
        dt = _number(factor * solver.stability_limit, like)
        size = solver.step(decay, _number(0.0, like), dt, like).abs().item()
        assert (size <= 1) is stable, (
            f"a decaying mode is multiplied by {size:.2f} at {factor} times stability_limit"
        )


def _check_grid_solver(solver: GridSolver, device: torch.device | None) -> None:
    problem = Quadratic.from_spectrum([0.2, 1.0, 3.0])
    y0 = torch.ones(2, 3, dtype=torch.float64, device=device)
    center, matrix = problem.center.to(y0), problem.matrix.to(y0)
    times = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64, device=device)

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        return -(y - center) @ matrix

    states, evaluations = solver.solve(velocity, times, y0)
    assert states.shape == (3, 2, 3), f"states have shape {tuple(states.shape)}, not (3, 2, 3)"
    assert torch.equal(states[0], y0), "the first state is not the initial one"
    assert evaluations > 0, "no evaluation was counted"
    error = relative_error(states[2, 0], problem.flow(y0[0], 2.0))
    assert error < 1e-2, f"the final state is off by {error:.1e}"
