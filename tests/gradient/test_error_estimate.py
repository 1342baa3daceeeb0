"""The error estimate against true errors, and what it says where it cannot be trusted."""

import math
from functools import cache

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.stabilized import along, stiff

import odeopt
from odeopt import (
    RK4,
    SGD,
    Adaptive,
    BacksolveAdjoint,
    CompatibilityError,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    Disk,
    DormandPrince,
    Euler,
    Every,
    FirstOrderAdjoint,
    Graded,
    GradientFlow,
    ModifiedEuler,
    ODEOptimizer,
    StabilizedRK,
    StopWhen,
    TimeGrid,
    Torchdiffeq,
)
from odeopt.gradient.error_estimate import Decay
from odeopt.testing.problems import Quadratic, relative_error, smooth_problem

CHOICES = {
    "euler": (400, {"solver": Euler()}),
    "heun": (240, {"solver": ModifiedEuler()}),
    "rk4": (60, {"solver": RK4()}),
    "odd": (241, {"solver": ModifiedEuler()}),
    "mesh": (
        240,
        {
            "solver": RK4(),
            "adjoint": ContinuousAdjoint(ModifiedEuler()),
            "checkpoints": Density(80),
        },
    ),
    "graded": (
        240,
        {"solver": RK4(), "adjoint": ContinuousAdjoint(RK4()), "checkpoints": Graded(40)},
    ),
    "dopri": (80, {"solver": DormandPrince(), "adjoint": ContinuousAdjoint(ModifiedEuler())}),
    "torchdiffeq rk4": (
        80,
        {"solver": Torchdiffeq("rk4"), "adjoint": ContinuousAdjoint(ModifiedEuler())},
    ),
    "stabilized": (1, {"solver": StabilizedRK(1e-7, 1e-7)}),
    "adaptive": (1, {"solver": Adaptive(1e-9, 1e-9)}),
}


def smooth(device, grid, *, tasks=None, hparams=False, estimate_error=True, **choices):
    problem = smooth_problem(device, tasks)
    opt = ODEOptimizer(GradientFlow(problem.loss), **choices)
    path = opt.value_and_grad(problem.loss, tasks=tasks is not None, estimate_error=estimate_error)
    given_hparams = problem.hparams if hparams else None
    return path(problem.params, problem.batch, grid, problem.outer_batch, given_hparams)


@cache
def exact(device, tasks):
    """The gradient of the flow up to T = 3."""
    grid = TimeGrid.uniform(3.0, 800)
    return smooth(device, grid, tasks=tasks, hparams=True, estimate_error=False, solver=RK4())


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("tasks", [None, 3])
def test_the_estimate_is_within_a_factor_of_two_of_the_true_error(device, name, tasks):
    steps, choices = CHOICES[name]
    found = smooth(device, TimeGrid.uniform(3.0, steps), tasks=tasks, hparams=True, **choices)
    best = exact(device, tasks)
    assert found.error.trusted, found.error.doubts
    for part in ("params", "hparams"):
        true = relative_error(getattr(found.grads, part), getattr(best.grads, part))
        assert 0.5 <= getattr(found.error, part) / true <= 2.0
    true = abs(found.value - best.value) / abs(best.value)
    if true > 1e-6:  # the order at which a value converges may be higher
        assert found.error.value >= 0.3 * true


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    horizon=st.floats(0.1, 3.0),
    smallest=st.floats(-0.3, 1.0),
    steps=st.integers(20, 200),
)
@example(seed=243, horizon=3.0, smallest=1.0, steps=24)  # nearly all of it is in the fastest mode
@example(seed=243, horizon=3.0, smallest=1.0, steps=100)
def test_it_holds_on_random_quadratics(seed, horizon, smallest, steps):
    problem = Quadratic.from_spectrum([smallest, 1.0, 2.0, 4.0], seed)
    random = torch.Generator().manual_seed(seed)
    start, direction = torch.randn(2, 4, generator=random).unbind()
    opt = ODEOptimizer(GradientFlow(problem.loss), RK4())
    path = opt.value_and_grad(along, estimate_error=True)
    found = path(start, problem.center, TimeGrid.uniform(horizon, steps), direction)
    exact = problem.flow_adjoint(direction, horizon)
    true = relative_error(found.grads.params, exact)
    if 4.0 * horizon / steps < 0.13:  # the error of the fastest mode alone is below the limit
        assert found.error.trusted
    if found.error.trusted and true > 1e-11:
        assert 0.5 <= found.error.params / true <= 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["euler", "mesh", "stabilized"])
def test_asking_for_it_changes_nothing_else(device, name):
    steps, choices = CHOICES[name]
    grid = TimeGrid.uniform(4.0, steps)
    asked = smooth(device, grid, **choices)
    plain = smooth(device, grid, estimate_error=False, **choices)
    assert plain.error is None
    assert relative_error(asked.grads.params, plain.grads.params) == 0
    assert asked.stats == plain.stats
    if name != "stabilized":
        assert asked.error.stats.steps == asked.stats.steps // 2


def test_steps_near_the_stability_limit_are_doubted(device):
    problem, start, direction = stiff(100.0)
    opt = ODEOptimizer(GradientFlow(problem.loss), Euler())
    path = opt.value_and_grad(along, estimate_error=True)
    center, start, direction = (x.to(device) for x in (problem.center, start, direction))
    near = path(start, center, TimeGrid.from_lr(0.019, 200), direction).error
    assert not near.trusted
    assert "twice as long" in near.doubts[0]
    far = path(start, center, TimeGrid.from_lr(0.005, 800), direction).error
    assert far.trusted


def test_a_mesh_that_the_guard_refuses_when_halved_is_doubted(device):
    problem, start, direction = stiff(100.0)
    choices = {"adjoint": ContinuousAdjoint(ModifiedEuler()), "checkpoints": Density(120)}
    opt = ODEOptimizer(GradientFlow(problem.loss), RK4(), **choices)
    path = opt.value_and_grad(along, estimate_error=True)
    center, start, direction = (x.to(device) for x in (problem.center, start, direction))
    found = path(start, center, TimeGrid.uniform(2.0, 480), direction)
    assert found.error.doubts == ("steps twice as long are not stable",)
    assert math.isinf(found.error.params)
    assert torch.isfinite(found.grads.params).all()


def test_a_few_steps_of_different_lengths_are_doubted(device):
    problem, start, direction = stiff(3.0)
    center, start, direction = (x.to(device) for x in (problem.center, start, direction))

    def error(tolerance, horizon):
        solver = StabilizedRK(tolerance, tolerance)
        opt = ODEOptimizer(GradientFlow(problem.loss), solver)
        path = opt.value_and_grad(along, estimate_error=True)
        return path(start, center, TimeGrid.uniform(horizon, 1), direction).error

    few, many = error(1e-2, 0.1), error(1e-4, 1.0)
    assert any("steps, of different lengths" in doubt for doubt in few.doubts)
    assert not any("steps, of different lengths" in doubt for doubt in many.doubts)


def test_a_single_step_has_no_estimate(device):
    error = smooth(device, TimeGrid.uniform(0.1, 1), solver=RK4()).error
    assert not error.trusted
    assert "one step" in error.doubts[0]


@pytest.mark.slow
def test_observed_states_stay_nodes(device):
    problem = smooth_problem(device)

    def outer(params, batch, observed):
        return problem.loss(params, batch) + problem.loss(observed[0], batch)

    def run(steps, observe, estimate_error):
        opt = ODEOptimizer(GradientFlow(problem.loss), ModifiedEuler())
        path = opt.value_and_grad(outer, estimate_error=estimate_error)
        grid = TimeGrid.uniform(4.0, steps, observe=[observe])
        return path(problem.params, problem.batch, grid, problem.outer_batch)

    found, exact = run(40, 15, True), run(1600, 600, False)
    true = relative_error(found.grads.params, exact.grads.params)
    assert 0.5 <= found.error.params / true <= 2.0


@pytest.mark.slow
def test_horizons_per_task_are_halved_each(device):
    horizons = torch.tensor([1.0, 4.0, 0.0])
    found = smooth(device, TimeGrid.uniform(horizons, 40), tasks=3, solver=ModifiedEuler())
    exact = smooth(
        device, TimeGrid.uniform(horizons, 400), tasks=3, solver=RK4(), estimate_error=False
    )
    true = relative_error(found.grads.params, exact.grads.params)
    assert 0.5 <= found.error.params / true <= 2.0


def test_where_there_is_no_flow_it_is_refused_by_name(tmp_path):
    problem = smooth_problem()
    flow = GradientFlow(problem.loss)
    refused = [
        (ODEOptimizer(SGD(problem.loss)), {}, "SGD is an update rule"),
        (ODEOptimizer(flow, adjoint=FirstOrderAdjoint()), {}, "FirstOrderAdjoint"),
        (ODEOptimizer(flow, adjoint=BacksolveAdjoint()), {}, "BacksolveAdjoint"),
        (ODEOptimizer(flow), {"stop": StopWhen(problem.loss)}, "stop"),
        (
            ODEOptimizer(
                flow,
                adjoint=DiscreteAdjoint(),
                checkpoints=Every(1, Disk(tmp_path, resume=True)),
            ),
            {},
            "resume=True",
        ),
    ]
    for opt, settings, said in refused:
        with pytest.raises(CompatibilityError, match=said):
            opt.value_and_grad(problem.loss, estimate_error=True, **settings)


@pytest.mark.slow
def test_the_defect_of_each_interval_is_reported_and_doubted_where_it_is_large(device):
    problem, start, direction = stiff(10.0)
    center, start, direction = (x.to(device) for x in (problem.center, start, direction))

    def run(nodes):
        choices = {"adjoint": ContinuousAdjoint(RK4()), "checkpoints": Density(nodes)}
        opt = ODEOptimizer(GradientFlow(problem.loss), RK4(), safety=odeopt.Safety.off(), **choices)
        path = opt.value_and_grad(along, estimate_error=True)
        return path(start, center, TimeGrid.uniform(3.0, 240), direction).error

    fine, coarse = run(120), run(6)
    assert fine.defects.shape == (120,)
    assert 0 < fine.defects.max() < 1e-3
    assert not any("misses the flow" in doubt for doubt in fine.doubts)
    assert coarse.defects.max() > 0.1
    assert coarse.defects.argmax() == 0  # the fastest mode has not decayed yet
    assert any("misses the flow" in doubt for doubt in coarse.doubts)
    exact = ODEOptimizer(GradientFlow(problem.loss), RK4())
    path = exact.value_and_grad(along, estimate_error=True)
    assert path(start, center, TimeGrid.uniform(3.0, 240), direction).error.defects is None


@pytest.mark.parametrize("steps", [16, 24, 40])
def test_the_next_term_of_the_error_is_taken_into_account(steps):
    problem = Quadratic.from_spectrum([0.2, 0.5, 1.0, 2.0, 4.0], 3)
    random = torch.Generator().manual_seed(3)
    start, direction = torch.randn(2, 5, generator=random).unbind()
    path = ODEOptimizer(GradientFlow(problem.loss), RK4()).value_and_grad(
        along, estimate_error=True
    )
    found = path(start, problem.center, TimeGrid.uniform(3.0, steps), direction)
    true = relative_error(found.grads.params, problem.flow_adjoint(direction, 3.0))
    assert found.error.params / true == pytest.approx(1.0, abs=0.04)
    leading = found.error.gap / 15
    assert leading / true > 1.05


def test_without_it_an_error_is_the_difference_over_the_factor_less_one():
    assert Decay(order=2, factor=4.0).ahead(0.1) == 3.0
    assert Decay(2, 4.0, next_term=0.5).ahead(0.0) == 3.0
    # twice as long: a h = 0.5 * 0.04 ** 0.5
    assert Decay(2, 4.0, next_term=0.5).ahead(0.04) == pytest.approx(3.0 + 4.0 * 0.1)
    assert Decay(2, 4.0, next_term=0.5).ahead(math.inf) == 3.0
