"""The Runge-Kutta-Chebyshev method: polynomials, order, stability, accuracy, and its limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support.params import slow_but
from support.stabilized import gradient, stiff

import odeopt
from odeopt import (
    RK4,
    Adam,
    DiscreteAdjoint,
    GradientFlow,
    HeavyBall,
    ODEOptimizer,
    PIController,
    Safety,
    StabilizedRK,
    TimeGrid,
    TruncatedAdjoint,
)
from odeopt.solver.chebyshev import coefficients
from odeopt.solver.spectral_radius import PowerIteration
from odeopt.solver.stabilized import StageChoice
from odeopt.testing import check_solver
from odeopt.testing.problems import relative_error, smooth_problem


def polynomial(s, z):
    """The stability polynomial in closed form, by cosines."""
    damping = 2 / 13 / s**2
    w0, root = 1 + damping, math.sqrt(damping * (2 + damping))
    angle = math.log1p(damping + root)
    value = math.cosh(s * angle)
    slope = s * math.sinh(s * angle) / root
    bend = (s**2 * value - w0 * slope) / root**2
    b, w1 = bend / slope**2, slope / bend
    x = w0 + w1 * z
    cosine = math.cos(s * math.acos(x)) if abs(x) <= 1 else math.cosh(s * math.acosh(abs(x)))
    if x < -1 and s % 2:
        cosine = -cosine
    return 1 - b * value + b * cosine


def one_step(s, z):
    """The factor that a step gives a mode with dt rate = -z."""
    one, dt = torch.ones(1), torch.tensor(-z)
    return StabilizedRK(stages=s).step(lambda t, y: -y, torch.tensor(0.0), dt, one).item()


@pytest.mark.parametrize("s", [2, 3, 4, 5, 9, 20, 57, 200])
def test_a_step_is_the_stability_polynomial(s):
    beta = coefficients(s).beta
    for part in (0.0, 1e-3, 0.1, 0.37, 0.8, 0.99, 1.0, 1.05):
        expected = polynomial(s, -part * beta)
        assert one_step(s, -part * beta) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize(
    ("s", "beta"),
    [(2, 1.963), (3, 5.230), (4, 9.804), (5, 15.685), (10, 64.69), (20, 260.7), (50, 1633.0),
     (100, 6533.2), (200, 26134.6)],
)  # fmt: skip
def test_the_table_of_stability_limits(s, beta):
    solver = StabilizedRK(stages=s)
    assert solver.stability_limit == pytest.approx(beta, rel=1e-3)
    sizes = [abs(one_step(s, -solver.stability_limit * k / 500)) for k in range(500)]
    assert max(sizes[1:]) < 1
    assert max(sizes[50:]) < 0.96


@pytest.mark.slow
@pytest.mark.parametrize("s", [2, 4, 5, 8, 31])
def test_the_conformance_suite_with_a_fixed_number_of_stages(s):
    check_solver(StabilizedRK(stages=s))


@pytest.mark.parametrize("stiffness", [0.0, 0.1, 1.9, 2.0, 100.0, 4e4])
def test_as_many_stages_as_are_stable_and_no_more(stiffness):
    s = StabilizedRK().stages_for(stiffness)
    assert coefficients(s).beta >= stiffness
    assert s == 2 or coefficients(s - 1).beta < 1.01 * stiffness
    assert StabilizedRK(max_stages=10).stages_for(1e9) == 10


@pytest.mark.slow
@pytest.mark.parametrize("s", [3, 6, 15])
def test_state_and_gradient_converge_with_order_two(s, device):
    problem = smooth_problem(device)

    def run(steps, solver):
        opt = ODEOptimizer(GradientFlow(problem.loss), solver)
        grid = TimeGrid.uniform(2.0, steps)
        res = opt.value_and_grad(problem.loss)(
            problem.params, problem.batch, grid, problem.outer_batch
        )
        return res.value, res.grads.params

    reference = run(200, RK4())
    errors = [relative_error(run(n, StabilizedRK(stages=s)), reference) for n in (8, 16, 32, 64)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("tolerance", slow_but([1e-3, 1e-4, 1e-5], 1e-3))
def test_a_stiff_quadratic_against_its_closed_form(tolerance, device):
    problem, start, direction = stiff(1e4)
    solver = StabilizedRK(tolerance, tolerance * 1e-2)
    res = gradient(problem, TimeGrid.uniform(1.0, 1), start.to(device), direction, solver)
    exact = problem.flow_adjoint(direction, 1.0)
    assert relative_error(res.grads.params.cpu(), exact) < 2 * tolerance
    assert abs(res.value.item() - problem.flow(start, 1.0) @ direction) < 2 * tolerance
    assert res.stats.gradient_evaluations + res.stats.hvps < 10_000  # half of it for descent


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [False, True])
def test_errors_follow_the_tolerance(tasks, device):
    problem = smooth_problem(device, tasks=3 if tasks else None)
    grid = TimeGrid.uniform(20.0, 1)
    found = [
        ODEOptimizer(GradientFlow(problem.loss), solver)
        .value_and_grad(problem.loss, tasks=tasks)(
            problem.params, problem.batch, grid, problem.outer_batch
        )
        .grads.params
        for solver in (odeopt.Adaptive(1e-8, 1e-10), StabilizedRK(1e-2), StabilizedRK(1e-4, 1e-6))
    ]
    loose, tight = (relative_error(one, found[0]) for one in found[1:])
    assert tight < 0.1 * loose < 5e-3


def test_two_hundred_stages_in_single_precision(device):
    problem, start, direction = stiff(2e4)
    grid = TimeGrid.uniform(2.0, 2)
    found = []
    for dtype in (torch.float32, torch.float64):
        at = lambda x, dtype=dtype: x.to(device, dtype)  # noqa: E731
        loss = lambda u, c, at=at: 0.5 * (u - c) @ at(problem.matrix) @ (u - c)  # noqa: E731
        opt = ODEOptimizer(GradientFlow(loss), StabilizedRK(stages=200))
        res = opt.value_and_grad(lambda u, w: u @ w)(
            at(start), at(problem.center), grid, at(direction)
        )
        found.append((res.value.double(), res.grads.params.double()))
    assert relative_error(*found) < 1e-3


def test_single_precision_chooses_its_steps_too(device):
    problem, start, direction = stiff(1e3)
    at = lambda x: x.to(device, torch.float32)  # noqa: E731
    loss = lambda u, c: 0.5 * (u - c) @ at(problem.matrix) @ (u - c)  # noqa: E731
    opt = ODEOptimizer(GradientFlow(loss), StabilizedRK(1e-3, 1e-5))
    grid = TimeGrid.uniform(1.0, 1)
    res = opt.value_and_grad(lambda u, w: u @ w)(at(start), at(problem.center), grid, at(direction))
    exact = problem.flow_adjoint(direction, 1.0)
    assert relative_error(res.grads.params.cpu().double(), exact) < 2e-3


@pytest.mark.parametrize(
    "low", slow_but(["from the fortieth on", "always"], "from the fortieth on")
)
def test_a_radius_that_is_a_fifth_too_small_is_found_out(low, monkeypatch, device):
    problem, start, direction = stiff(1e4)
    estimate, suspect = PowerIteration.estimate, StageChoice._suspect
    count, rejected = 0, []

    def too_small(self, *args):
        nonlocal count
        count += 1
        found = estimate(self, *args)
        if low == "always":
            return found * 0.8 / 1.15
        rejections = [k for k in rejected if k > 40]
        return found * 0.8 / 1.15 if count > 40 and not rejections else found

    def seen(self, *args):
        rejected.append(count)
        return suspect(self, *args)

    monkeypatch.setattr(PowerIteration, "estimate", too_small)
    monkeypatch.setattr(StageChoice, "_suspect", seen)
    solver = StabilizedRK(1e-3, 1e-5)
    res = gradient(problem, TimeGrid.uniform(1.0, 1), start.to(device), direction, solver)
    assert any(k > 40 for k in rejected)
    assert relative_error(res.grads.params.cpu(), problem.flow_adjoint(direction, 1.0)) < 1e-3


@pytest.mark.parametrize(
    "field",
    [HeavyBall(lambda p, b: p.square().sum(), damping=1.0), lambda t, y, c, h, b: -y],
    ids=["heavy-ball", "callable"],
)
@pytest.mark.parametrize("solver", [StabilizedRK(), StabilizedRK(stages=5)])
def test_fields_without_a_real_spectrum_are_refused(field, solver):
    with pytest.raises(odeopt.CompatibilityError, match=r"real spectrum.*RK4\(\).*GradientFlow"):
        ODEOptimizer(field, solver)


def test_update_rules_are_refused():
    with pytest.raises(odeopt.CompatibilityError, match="Adam is an update rule"):
        ODEOptimizer(Adam(lambda p, b: p.square().sum()), StabilizedRK())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"stages": 1}, "stages is 1"), ({"stages": 2.5}, "stages is 2.5"),
        ({"max_stages": True}, "max_stages is True"), ({"rtol": 0.0}, "rtol is 0.0"),
        ({"first_step": -1.0}, "first_step is -1.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(keywords, message):
    with pytest.raises(odeopt.InputError, match=message):
        StabilizedRK(**keywords)


def test_few_stages_make_short_steps(device):
    problem, start, direction = stiff(1e3)
    grid = TimeGrid.uniform(1.0, 1)
    few = gradient(
        problem, grid, start.to(device), direction, StabilizedRK(1e-3, 1e-5, max_stages=4)
    )
    assert few.stats.hvps <= 4 * few.stats.steps
    assert few.stats.steps > 1e3 / coefficients(4).beta
    assert relative_error(few.grads.params.cpu(), problem.flow_adjoint(direction, 1.0)) < 1e-3


def test_too_many_steps_and_what_is_not_finite_raise(device):
    problem, start, direction = stiff(1e3)
    grid = TimeGrid.uniform(1.0, 1)
    with pytest.raises(odeopt.StepLimitError, match="StabilizedRK made 7 attempts"):
        gradient(problem, grid, start.to(device), direction, StabilizedRK(max_steps=7))
    opt = ODEOptimizer(GradientFlow(lambda p, b: (p.log() * b).sum()), StabilizedRK())
    with pytest.raises(odeopt.DivergenceError):
        opt.solve(torch.ones(2, device=device), torch.ones(2, device=device), grid)


@pytest.mark.slow
def test_power_iterations_of_safety_use_the_limit_of_each_step(device):
    problem, start, direction = stiff(1e3)
    coarse, safety = TimeGrid.uniform(1.0, 3), Safety(power_iterations=20)
    gradient(problem, coarse, start.to(device), direction, StabilizedRK(), safety=safety)
    for adjoint in (DiscreteAdjoint(), TruncatedAdjoint(1)):
        with pytest.raises(odeopt.StabilityError, match="as long as the stability limit"):
            gradient(
                problem, coarse, 0 * start.to(device) + problem.center.to(device), direction,
                StabilizedRK(stages=20), adjoint=adjoint, safety=safety,
            )  # fmt: skip


@pytest.mark.slow
def test_one_controller_for_all_tasks(device):
    problem = smooth_problem(device, tasks=3)
    solver = StabilizedRK(1e-5, 1e-7, PIController(per_task=False))
    res, exact = (
        ODEOptimizer(GradientFlow(problem.loss), one)
        .value_and_grad(problem.loss, tasks=True)(
            problem.params, problem.batch, TimeGrid.uniform(5.0, 1), problem.outer_batch
        )
        .grads.params
        for one in (solver, odeopt.Adaptive(1e-9, 1e-11))
    )
    assert relative_error(res, exact) < 1e-3
