"""Tasks that fail are left out of the means and reported, where the user wants it."""

from __future__ import annotations

import math

import pytest
import torch
from support.safety import (
    GRID,
    by_solve,
    distance,
    ones,
    quadratic,
    quartic,
    total,
)

import odeopt
from odeopt import (
    Adaptive,
    Binomial,
    ContinuousAdjoint,
    Every,
    FirstOrderAdjoint,
    Graded,
    GradientFlow,
    ModifiedEuler,
    ODEOptimizer,
    Status,
    TimeGrid,
)


def run_skipping(device, opt, outer, batch, outer_batch, grid, hparams=None):
    call = opt.value_and_grad(outer, tasks=True, on_failure="skip")
    return call(3 * ones(device), batch, grid, outer_batch, hparams)


@pytest.mark.parametrize("choices", [
    {}, {"checkpoints": Every(3)}, {"checkpoints": Binomial(2)}, {"checkpoints": Graded(4)},
    {"adjoint": ContinuousAdjoint(ModifiedEuler())},
    {"adjoint": ContinuousAdjoint(ModifiedEuler()), "checkpoints": Binomial(2)},
    {"adjoint": FirstOrderAdjoint()},
], ids=["default", "every", "binomial", "graded", "continuous", "continuous, binomial",
        "first order"])  # fmt: skip
def test_a_task_that_diverges_is_left_out_and_reported(device, choices):
    opt, grid = ODEOptimizer(GradientFlow(quartic), **choices), TimeGrid.from_lr(1.0, 20)
    batch = torch.tensor([1e-3, 1.0, 1e-3], device=device)
    res = run_skipping(device, opt, distance, batch, batch, grid)
    alone = opt.value_and_grad(distance)(3 * ones(device), batch[0], grid, batch[0])
    assert res.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.value, alone.value)
    torch.testing.assert_close(res.grads.params, alone.grads.params)


def test_a_task_in_which_an_adaptive_solve_fails_is_left_out(device):
    def velocity(t, y, consts, hparams, batch):
        return torch.where(batch > 0, y**3, -y)  # a pole at t = 1 / 18

    opt, grid = ODEOptimizer(velocity, Adaptive()), TimeGrid.uniform(1.0, 1)
    batch = torch.tensor([0.0, 1.0], device=device)
    res = run_skipping(device, opt, distance, batch, batch, grid)
    alone = opt.value_and_grad(distance)(3 * ones(device), batch[0], grid, batch[0])
    assert res.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE]
    torch.testing.assert_close(res.grads.params, alone.grads.params, rtol=1e-5, atol=1e-6)


def test_a_task_that_diverges_does_not_spoil_the_nodes_of_the_others(device):
    adjoint, grid = ContinuousAdjoint(ModifiedEuler()), TimeGrid.from_lr(1.0, 60)
    opt = ODEOptimizer(GradientFlow(quartic), adjoint=adjoint, checkpoints=Graded(15))
    good = torch.tensor([5e-3, 5e-3], device=device)
    bad = torch.tensor([5e-3, 1.0], device=device)
    spoilt, expected = (
        run_skipping(device, opt, distance, batch, batch, grid).grads.params
        for batch in (bad, good)
    )
    torch.testing.assert_close(spoilt, expected, rtol=1e-2, atol=0.0)


def test_a_task_whose_value_is_not_finite_is_left_out(device):
    opt = ODEOptimizer(GradientFlow(quadratic))
    outer_batch = torch.tensor([1.0, math.nan, 3.0], device=device)
    res = run_skipping(device, opt, lambda p, b: b * p.sum(), ones(device, 3), outer_batch, GRID)
    assert res.status.tolist() == [Status.OK, Status.VALUE_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.grads.params, torch.full_like(res.grads.params, 2 * 0.9**4))
    torch.testing.assert_close(res.value, res.values[[0, 2]].mean())


def test_a_task_whose_adjoint_is_not_finite_is_left_out(device):
    def outer(params, batch, hparams):
        return (batch * params.square().sum() * hparams).sqrt()

    opt = ODEOptimizer(GradientFlow(quadratic))
    hparams = torch.tensor(2.0, device=device)
    outer_batch = torch.tensor([0.0, 1.0], device=device)
    res = run_skipping(device, opt, outer, ones(device), outer_batch, GRID, hparams)
    alone = opt.value_and_grad(outer)(
        3 * ones(device), ones(device)[0], GRID, outer_batch[1], hparams
    )
    assert res.status.tolist() == [Status.OUTER_GRADIENT_NOT_FINITE, Status.OK]
    torch.testing.assert_close(res.grads.params, alone.grads.params)
    torch.testing.assert_close(res.grads.hparams, alone.grads.hparams)


def test_a_task_that_is_unstable_is_left_out(device):
    opt = ODEOptimizer(
        GradientFlow(quadratic), adjoint=ContinuousAdjoint(ModifiedEuler()), checkpoints=Every(50)
    )
    batch = torch.tensor([1.0, 100.0], device=device)
    res = run_skipping(device, opt, total, batch, batch, TimeGrid.uniform(1.0, 500))
    assert res.status.tolist() == [Status.OK, Status.UNSTABLE]
    assert bool(torch.isfinite(res.grads.params).all())


def test_all_tasks_failing_raises_even_when_skipping(device):
    opt = ODEOptimizer(GradientFlow(quartic))
    with pytest.raises(odeopt.DivergenceError, match="tasks 0, 1 failed; task 0: the state"):
        run_skipping(device, opt, total, ones(device), ones(device), TimeGrid.from_lr(1.0, 20))


def test_skipping_without_tasks_raises(device):
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(total, on_failure="skip")
    with pytest.raises(odeopt.DivergenceError, match="the state is not finite after step"):
        call(3 * ones(device), ones(device), TimeGrid.from_lr(1.0, 20), ones(device))


def test_solve_reports_a_skipped_task(device):
    batch = torch.tensor([1e-3, 1.0], device=device)
    sol = ODEOptimizer(GradientFlow(quartic)).solve(
        3 * ones(device), batch, TimeGrid.from_lr(1.0, 20), tasks=True, on_failure="skip"
    )
    assert sol.status.tolist() == [Status.OK, Status.STATE_NOT_FINITE]


def test_a_solve_that_skipped_a_task_can_be_differentiated_for_the_others(device):
    batch = torch.tensor([1e-3, 1.0], device=device)
    grid = TimeGrid.from_lr(1.0, 20)
    params = (3 * ones(device)).requires_grad_()
    opt = ODEOptimizer(GradientFlow(quartic))
    sol = opt.solve(params, batch, grid, tasks=True, on_failure="skip")
    (found,) = torch.autograd.grad(sol.params[sol.status == Status.OK].sum(), params)
    torch.testing.assert_close(found, by_solve(opt, total, params.detach(), batch[0], grid))


@pytest.mark.parametrize("value", ["ignore", None, True])
def test_an_unknown_on_failure_is_refused(value):
    with pytest.raises(odeopt.InputError, match=r"on_failure is .*; expected 'raise' or 'skip'"):
        ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, on_failure=value)


def test_an_unknown_on_failure_is_refused_by_solve(device):
    with pytest.raises(odeopt.InputError, match="on_failure"):
        ODEOptimizer(GradientFlow(quadratic)).solve(
            ones(device), ones(device), GRID, on_failure="ignore"
        )
