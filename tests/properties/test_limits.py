"""The limits of `Safety`: steps too long, states too coarse, adjoints that grow."""

from __future__ import annotations

import math

import pytest
import torch
from support.safety import (
    GRID,
    both,
    distance,
    ones,
    quadratic,
    quartic,
    total,
)

import odeopt
from odeopt import (
    RK4,
    BacksolveAdjoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    Every,
    GradientFlow,
    ModifiedEuler,
    ODEOptimizer,
    Safety,
    TimeGrid,
)
from odeopt.adjoint.discrete import ExactAdjoint


def stiff(device):
    """A quadratic with rates 1 and 100 over T = 1; the first 500 Euler steps are stable."""
    return ones(device), torch.tensor([1.0, 100.0], device=device), TimeGrid.uniform(1.0, 500)


def slow_part(params, batch, hparams=None):
    return params[0]


def continuous(solver, every, safety=None):
    return ODEOptimizer(
        GradientFlow(quadratic), adjoint=ContinuousAdjoint(solver), checkpoints=Every(every),
        safety=safety,
    )  # fmt: skip


@both
def test_a_mesh_too_coarse_for_the_backward_method_is_refused(device, run):
    with pytest.raises(odeopt.StabilityError, match=r"from state 450 \(t = 0\.9\) is too long"):
        run(continuous(ModifiedEuler(), 50), total, *stiff(device))


@both
def test_a_mesh_fine_enough_for_the_backward_method_is_accepted(device, run):
    exact = run(ODEOptimizer(GradientFlow(quadratic)), total, *stiff(device))
    found = run(continuous(ModifiedEuler(), 1), total, *stiff(device))
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)


@both
def test_the_unstable_task_is_named(device, run):
    batch = torch.tensor([1.0, 100.0], device=device)
    with pytest.raises(odeopt.StabilityError, match=r"^task 1: the interval from state 450"):
        run(continuous(ModifiedEuler(), 50), total, ones(device), batch,
            TimeGrid.uniform(1.0, 500), tasks=True)  # fmt: skip


@both
def test_states_interpolated_too_coarsely_are_refused(device, run):
    with pytest.raises(
        odeopt.StabilityError, match=r"from state 0 \(t = 0\) misses the flow.*Grad"
    ):
        run(continuous(RK4(), 25), slow_part, *stiff(device))


@both
def test_growth_of_the_adjoint_is_refused(device, run):
    params, grid = ones(device), TimeGrid.uniform(1.0, 100)
    with pytest.raises(odeopt.StabilityError, match=r"adjoint variable grew by .*limit 1e\+08"):
        run(continuous(RK4(), 1), total, params, -25 * ones(device), grid)


def test_growth_does_not_depend_on_the_scale_of_the_outer_loss(device):
    params, grid = ones(device), TimeGrid.uniform(1.0, 100)
    opt = ODEOptimizer(GradientFlow(quadratic), RK4(), BacksolveAdjoint())
    for scale in (1e-6, 1.0, 1e6):
        call = opt.value_and_grad(lambda u, batch, scale=scale: scale * total(u, batch))
        with pytest.raises(odeopt.StabilityError, match=r"adjoint variable grew by .*limit 1e\+08"):
            call(params, -25 * ones(device), grid, ones(device))


@both
def test_growth_is_no_fault_of_the_exact_adjoint(device, run):
    params, grid = ones(device), TimeGrid.uniform(1.0, 100)
    found = run(ODEOptimizer(GradientFlow(quadratic)), total, params, -25 * ones(device), grid)
    torch.testing.assert_close(found, torch.full_like(found, 1.25**100))


class Magnifying(ExactAdjoint):
    """Replays the steps, but multiplies what comes back from each: it is `exact` only in name."""

    def __init__(self, factor, exact):
        super().__init__()
        self.factor, self.exact = factor, exact

    def pull(self, solver, stepping, interval, lam):
        found = super().pull(solver, stepping, interval, lam)
        return found._replace(lam=self.factor * found.lam)


@both
def test_growth_is_a_fault_of_an_adjoint_that_replays_but_is_not_exact(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), adjoint=Magnifying(1e10, exact=False))
    grid = TimeGrid.from_lr(1e-3, 3)
    with pytest.raises(odeopt.StabilityError, match=r"adjoint variable grew by 1\.0e\+30"):
        run(opt, total, ones(device), ones(device), grid)


@both
def test_an_adjoint_says_itself_that_it_is_exact(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), adjoint=Magnifying(1e10, exact=True))
    found = run(opt, total, ones(device), ones(device), TimeGrid.from_lr(1e-3, 3))
    torch.testing.assert_close(found, torch.full_like(found, 1e30 * 0.999**3))


def valley(params, batch, hparams=None):
    return 10 * (params[0] - torch.sin(params[1])) ** 2 + 0.05 * params[1] ** 2


@both
@pytest.mark.parametrize("t1", [1.0, 2.0])
def test_a_gradient_of_backsolve_without_a_right_digit_is_refused(device, run, t1):
    params, grid = torch.tensor([1.0, 2.0], device=device), TimeGrid.uniform(t1, int(50 * t1))
    opt = ODEOptimizer(GradientFlow(valley), RK4(), BacksolveAdjoint())
    with pytest.raises((odeopt.StabilityError, odeopt.DivergenceError)):
        run(opt, distance, params, ones(device), grid)


@pytest.mark.parametrize("adjoint", [
    ContinuousAdjoint(ModifiedEuler()), ContinuousAdjoint(RK4()), BacksolveAdjoint(),
], ids=["modified Euler", "RK4", "backsolve"])  # fmt: skip
def test_an_outer_loss_of_observed_states_alone_is_no_growth(device, adjoint):
    def outer(params, batch, observed):
        return observed[0].sum()

    grid = TimeGrid.from_lr(0.01, 20, observe=[10])
    res = ODEOptimizer(GradientFlow(quadratic), adjoint=adjoint).value_and_grad(outer)(
        ones(device), ones(device), grid, ones(device)
    )
    expected = torch.full_like(res.grads.params, math.exp(-0.1))
    torch.testing.assert_close(res.grads.params, expected, rtol=1e-2, atol=0.0)


@both
@pytest.mark.parametrize("adjoint", [
    DiscreteAdjoint(), ContinuousAdjoint(ModifiedEuler()), BacksolveAdjoint(),
], ids=lambda adjoint: type(adjoint).__name__)  # fmt: skip
def test_a_gradient_of_zero_is_no_fault(device, run, adjoint):
    opt = ODEOptimizer(GradientFlow(quadratic), adjoint=adjoint)
    found = run(opt, lambda p, b: 0.0 * p.sum(), ones(device), ones(device), GRID)
    assert not found.any()


@both
def test_steps_beyond_the_stability_limit_are_refused_by_power_iteration(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=3))
    batch = torch.tensor([10.0, 1.0], device=device)
    with pytest.raises(
        odeopt.StabilityError, match=r"is 1\.2\d times as long as the stability lim"
    ):
        run(opt, total, ones(device), batch, TimeGrid.from_lr(0.25, 10))


@both
def test_steps_below_the_stability_limit_pass_power_iteration(device, run):
    batch = torch.tensor([10.0, 1.0], device=device)
    arguments = total, ones(device), batch, TimeGrid.from_lr(0.19, 10)
    watched, plain = (
        run(ODEOptimizer(GradientFlow(quadratic), safety=safety), *arguments)
        for safety in (Safety(power_iterations=3), Safety())
    )
    assert torch.equal(watched, plain)


@both
@pytest.mark.parametrize(("dt", "refused"), [(0.6, False), (0.7, True)])
def test_one_power_iteration_is_exact_where_all_eigenvalues_are_equal(device, run, dt, refused):
    opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=1))
    grid = TimeGrid.from_lr(dt, 4)  # stable up to dt = 2/3
    given = (opt, total, ones(device, 20), 3 * ones(device, 20), grid)
    if not refused:
        run(*given)
        return
    with pytest.raises(odeopt.StabilityError, match=r"is 1\.05 times as long as the stability lim"):
        run(*given)


@both
def test_power_iteration_names_the_task(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=3))
    batch = torch.tensor([1.0, 10.0], device=device)
    with pytest.raises(odeopt.StabilityError, match=r"^task 1: "):
        run(opt, total, ones(device), batch, TimeGrid.from_lr(0.25, 10), tasks=True)


def test_power_iterations_are_counted(device):
    def hvps(count):
        opt = ODEOptimizer(GradientFlow(quadratic), safety=Safety(power_iterations=count))
        return opt.value_and_grad(total)(ones(device), ones(device), GRID, ones(device)).stats.hvps

    assert [hvps(0), hvps(3)] == [4, 16]


@both
def test_without_limits_what_is_unstable_passes(device, run):
    opt = continuous(ModifiedEuler(), 50, Safety.off())
    assert bool(torch.isfinite(run(opt, total, *stiff(device))).all())


@both
def test_without_limits_coarse_states_and_growth_pass(device, run):
    off = Safety.off()
    coarse = run(continuous(RK4(), 25, off), slow_part, *stiff(device))
    grown = run(continuous(RK4(), 1, off), total, ones(device), -25 * ones(device),
                TimeGrid.uniform(1.0, 100))  # fmt: skip
    assert bool(torch.isfinite(coarse).all())
    assert bool((grown > 1e8).all())


@both
def test_without_limits_what_is_not_finite_is_still_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quartic), safety=Safety.off())
    with pytest.raises(odeopt.DivergenceError, match="not finite after step"):
        run(opt, total, 3 * ones(device), ones(device), TimeGrid.from_lr(1.0, 20))


@pytest.mark.parametrize("name", ["step_ratio", "defect", "growth"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_safety_refuses_a_limit_that_is_not_positive(name, value):
    with pytest.raises(
        odeopt.InputError, match=rf"Safety\.{name} is .*; expected a positive number or None"
    ):
        Safety(**{name: value})


@pytest.mark.parametrize("name", ["step_ratio", "defect", "growth"])
def test_safety_refuses_a_limit_that_is_no_number(name):
    with pytest.raises(odeopt.InputError, match=rf"Safety\.{name}"):
        Safety(**{name: "high"})


@pytest.mark.parametrize("value", [-1, 1.5, "3", None])
def test_safety_refuses_a_count_that_is_no_natural_number(value):
    with pytest.raises(odeopt.InputError, match=r"Safety\.power_iterations is .*; expected"):
        Safety(power_iterations=value)


def test_safety_that_is_off_has_no_limits():
    off = Safety.off()
    assert (off.step_ratio, off.defect, off.growth, off.power_iterations) == (None, None, None, 0)
