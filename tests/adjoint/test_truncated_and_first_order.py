"""The truncated and the first-order adjoint."""

from __future__ import annotations

import pytest
import torch
from support.discrete import (
    EXACT,
    SOLVERS,
    assert_same_as_autograd,
    autograd,
    inner,
    leaves,
    outer,
    problem,
    requiring_grad,
)
from torch.utils import _pytree as pytree

import odeopt
from odeopt import (
    Adaptive,
    Binomial,
    Density,
    DiscreteAdjoint,
    Every,
    Graded,
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Density(2), Graded(2), Binomial(2)])
@pytest.mark.parametrize("method", ["euler", "rk4"])
@pytest.mark.parametrize("last", [1, 2, 5])
def test_truncated_is_autograd_with_a_detach_before_the_last_steps(
    last, method, schedule, reference, device
):
    params, batch, outer_batch, hparams = problem([(3,), (2,)], device)
    batch = requiring_grad(batch)
    lr = torch.tensor([0.1, 0.2, 0.3, 0.05, 0.15, 0.1, 0.2], device=device)
    opt = ODEOptimizer(
        GradientFlow(inner), SOLVERS[method], odeopt.TruncatedAdjoint(last), checkpoints=schedule
    )
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    first = len(lr) - last

    def objective(params, batch, hparams, dts):
        early = pytree.tree_map(torch.Tensor.detach, (params, batch, hparams))
        velocity = reference.descent(inner, *early[1:])
        reached = reference.states(method, velocity, early[0], dts[:first].detach())[-1]
        y = pytree.tree_map(lambda u, u0: u.detach() + u0 - u0.detach(), reached, params)
        velocity = reference.descent(inner, batch, hparams)
        return outer(reference.states(method, velocity, y, dts[first:])[-1], outer_batch, hparams)

    assert_same_as_autograd(reference, res, autograd(objective, params, batch, hparams, lr))


@pytest.mark.parametrize("steps", [7, 8, 100])
def test_truncating_nothing_is_exact(steps, device):
    params, batch, outer_batch, hparams = problem([(5,)], device)
    found, expected = (
        ODEOptimizer(GradientFlow(inner), adjoint=adjoint).value_and_grad(outer)(
            params, batch, TimeGrid.from_lr(0.1, 7), outer_batch, hparams
        )
        for adjoint in (odeopt.TruncatedAdjoint(steps), DiscreteAdjoint())
    )
    assert all(torch.equal(x, y) for x, y in zip(leaves(found), leaves(expected), strict=True))


def test_truncated_keeps_the_states_of_the_last_steps_only(device):
    params, batch, outer_batch, hparams = problem([(5,)], device)
    opt = ODEOptimizer(GradientFlow(inner), adjoint=odeopt.TruncatedAdjoint(3))
    grid = TimeGrid.from_lr(0.1, 20)
    stats = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams).stats
    assert stats.stored_states == 3
    assert (stats.gradient_evaluations, stats.hvps, stats.replayed_steps) == (20, 3, 0)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive(), odeopt.DormandPrince()])
def test_first_order_takes_the_solve_for_the_identity(solver, reference, device):
    params, batch, outer_batch, hparams = problem([(3,), (2,)], device)
    opt = ODEOptimizer(GradientFlow(inner), solver, odeopt.FirstOrderAdjoint())
    grid = TimeGrid.from_lr(0.1, 6)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    end = opt.solve(params, batch, grid, hparams).params
    grads, value = torch.func.grad_and_value(outer, argnums=(0, 2))(end, outer_batch, hparams)
    assert reference.relative(res.value, value) <= EXACT
    assert reference.relative(res.grads.params, grads[0]) <= EXACT
    assert reference.relative(res.grads.hparams, grads[1]) <= EXACT
    assert not res.grads.dt.any()
    assert res.stats.hvps == res.stats.stored_states == 0
