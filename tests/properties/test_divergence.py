"""What is not finite: states, values, adjoints, and which step or task they come from."""

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
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    DiscreteAdjoint,
    DormandPrince,
    FirstOrderAdjoint,
    Graded,
    GradientFlow,
    ModifiedEuler,
    ODEOptimizer,
    TimeGrid,
)


def first_step_that_blows_up(params, lr):
    for k in range(100):
        params = params - lr * params**3
        if not bool(torch.isfinite(params).all()):
            return k
    raise AssertionError("the example does not diverge")


@both
@pytest.mark.parametrize("choices", [
    {}, {"checkpoints": Binomial(2)}, {"checkpoints": Graded(3)},
    {"adjoint": ContinuousAdjoint(ModifiedEuler())}, {"adjoint": BacksolveAdjoint()},
    {"adjoint": FirstOrderAdjoint()},
], ids=["default", "binomial", "graded", "continuous", "backsolve", "first order"])  # fmt: skip
def test_an_inner_solve_that_diverges_names_the_step(device, run, choices):
    params = 3 * ones(device)
    step = first_step_that_blows_up(params, 1.0)
    opt = ODEOptimizer(GradientFlow(quartic), **choices)
    with pytest.raises(odeopt.DivergenceError, match=rf"after step {step} \(t = {step}\).*smaller"):
        run(opt, total, params, ones(device), TimeGrid.from_lr(1.0, 20))


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_from_the_first_step_on_is_not_taken_for_random(device, run, bad):
    """NaN differs from itself."""
    opt = ODEOptimizer(lambda t, y, c, hp, b: y * b)
    batch = torch.tensor([1.0, bad], device=device)
    with pytest.raises(odeopt.DivergenceError, match=r"after step 0 \(t = 0\)"):
        run(opt, total, ones(device), batch, GRID)


@both
def test_an_inner_solve_that_diverges_names_the_task(device, run):
    batch = torch.tensor([1e-3, 1.0, 1e-3], device=device)
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(
        odeopt.DivergenceError, match=r"^task 1: the state is not finite after step"
    ):
        run(opt, total, 3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True)


@both
def test_several_tasks_that_diverge_are_all_named(device, run):
    batch = torch.tensor([1.0, 1e-3, 1.0], device=device)
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(odeopt.DivergenceError, match=r"^tasks 0, 2 failed; task 0: "):
        run(opt, total, 3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True)


@both
def test_an_adaptive_solve_of_a_loss_that_is_not_finite_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: (p.log() * b).sum()), solver=Adaptive())
    with pytest.raises(odeopt.OdeoptError, match=r"not finite|attempts"):
        run(opt, total, 0.01 * ones(device), ones(device), TimeGrid.uniform(1.0, 1))


@both
def test_a_torchdiffeq_solve_that_blows_up_is_refused(device, run):
    def explode(t, y, consts, hparams, batch):
        return y**3

    opt = ODEOptimizer(explode, DormandPrince(), ContinuousAdjoint(RK4()))
    with pytest.raises(odeopt.DivergenceError, match=r"dopri5 gave up|not finite"):
        run(opt, total, 3 * ones(device), ones(device), TimeGrid.uniform(1.0, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_of_the_outer_loss_that_is_not_finite_is_refused(device, bad):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: p.sum() + bad)
    with pytest.raises(odeopt.DivergenceError, match=r"the outer loss is not finite .*logarithms"):
        call(ones(device), ones(device), GRID, ones(device))


def test_a_value_that_is_not_finite_names_the_task(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: p.sum() + b, tasks=True
    )
    outer_batch = torch.tensor([0.0, math.nan], device=device)
    with pytest.raises(odeopt.DivergenceError, match=r"^task 1: the outer loss is not finite"):
        call(ones(device), ones(device), GRID, outer_batch)


@both
def test_a_root_at_zero_in_the_outer_loss_is_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(
        odeopt.DivergenceError, match=r"gradient of the outer loss is not finite.*square root"
    ):
        run(opt, lambda p, b: p.square().sum().sqrt(), 0 * ones(device), ones(device), GRID)


def test_a_root_at_zero_in_the_outer_loss_is_blamed_on_the_outer_loss(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: p.square().sum().sqrt()
    )
    with pytest.raises(odeopt.DivergenceError, match="outer loss"):
        call(0 * ones(device), ones(device), GRID, ones(device))


@pytest.mark.filterwarnings("ignore:the loss has kinks")
@both
@pytest.mark.parametrize("adjoint", [
    DiscreteAdjoint(), ContinuousAdjoint(ModifiedEuler()), BacksolveAdjoint(),
], ids=lambda adjoint: type(adjoint).__name__)  # fmt: skip
def test_a_second_derivative_of_the_inner_loss_that_is_not_finite_is_refused(device, run, adjoint):
    opt = ODEOptimizer(GradientFlow(lambda p, b: (p.abs() ** 1.5).sum()), adjoint=adjoint)
    with pytest.raises(odeopt.DivergenceError, match="adjoint variable is not finite"):
        run(opt, distance, 0 * ones(device), ones(device), GRID)


@both
def test_a_backward_sweep_that_fails_names_the_task(device, run):
    opt = ODEOptimizer(lambda t, y, c, hp, b: -torch.sqrt(y * y + b))
    with pytest.raises(
        odeopt.DivergenceError, match=r"^task 1: the adjoint variable is not finite"
    ):
        run(opt, distance, 0 * ones(device), torch.tensor([1.0, 0.0], device=device), GRID,
            tasks=True)  # fmt: skip


def rooted(params, batch, hparams):
    return (1 + hparams.sqrt()) * quadratic(params, batch)


def test_a_direct_gradient_of_hparams_that_is_not_finite_is_refused(device):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b, hp: p.sum() + hp.sqrt()
    )
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        call(ones(device), ones(device), GRID, ones(device), torch.zeros((), device=device))


def test_a_path_gradient_of_hparams_that_is_not_finite_is_refused(device):
    call = ODEOptimizer(GradientFlow(rooted)).value_and_grad(total)
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        call(ones(device), ones(device), GRID, ones(device), torch.zeros((), device=device))


def test_a_path_gradient_of_hparams_that_is_not_finite_is_refused_by_solve(device):
    hparams = torch.zeros((), device=device, requires_grad=True)
    sol = ODEOptimizer(GradientFlow(rooted)).solve(
        ones(device), ones(device), GRID, hparams=hparams
    )
    with pytest.raises(odeopt.DivergenceError, match="not finite"):
        sol.params.sum().backward()
