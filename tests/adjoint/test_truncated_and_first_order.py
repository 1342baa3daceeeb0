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


def several(device):
    """Parameters, batches of three tasks that curve differently, and outer batches."""
    params = torch.tensor([1.0, -0.5], device=device)
    return params, torch.tensor([0.5, 1.0, 3.0], device=device), torch.ones(3, device=device)


def curved(params, batch):
    return batch * (params.square().sum() + params.sum().cosh())


CHOSEN = {
    "a field": lambda: (GradientFlow(curved), odeopt.RK4()),
    "a rule": lambda: (odeopt.SGD(curved, momentum=0.9), None),
}


@pytest.mark.parametrize("schedule", [Every(1), Every(3), Binomial(2)])
@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("stops", [[3, 8, 5], [0, 2, 8], [4, 4, 4]])
def test_each_task_counts_its_own_last_steps(name, stops, schedule, device):
    params, batch, outer_batch = several(device)
    opt = ODEOptimizer(*CHOSEN[name](), odeopt.TruncatedAdjoint(3), schedule)
    grid = TimeGrid.from_lr(torch.linspace(0.02, 0.06, 8, device=device))
    stopped = grid.stopping(torch.tensor(stops, device=device))
    together = opt.value_and_grad(curved, tasks=True)(params, batch, stopped, outer_batch)
    alone = [
        opt.value_and_grad(curved)(params, batch[k], grid.stopping(stop), outer_batch[k])
        for k, stop in enumerate(stops)
    ]
    run = opt.value_and_grad(curved)
    shorter = [
        run(params, batch[k], TimeGrid.from_lr(grid.dt[:stop]), outer_batch[k])
        for k, stop in enumerate(stops)
    ]
    for own, short in zip(alone, shorter, strict=True):
        torch.testing.assert_close(own.grads.params, short.grads.params, rtol=1e-12, atol=0)
    mean = torch.stack([res.grads.params for res in shorter]).mean(0)
    torch.testing.assert_close(together.grads.params, mean, rtol=1e-12, atol=0)
    for k, stop in enumerate(stops):
        own = together.grads.dt[k]
        torch.testing.assert_close(own[:stop], shorter[k].grads.dt, rtol=1e-11, atol=1e-14)
        assert not own[: max(stop - 3, 0)].any()


def test_each_task_counts_its_own_last_steps_in_solve_too(device):
    params, batch, outer_batch = several(device)
    opt = ODEOptimizer(odeopt.Adam(curved), adjoint=odeopt.TruncatedAdjoint(3))
    grid = TimeGrid.from_lr(0.05, 8).stopping(torch.tensor([3, 8, 5], device=device))
    expected = opt.value_and_grad(curved, tasks=True)(params, batch, grid, outer_batch)
    params.requires_grad_()
    ends = opt.solve(params, batch, grid, tasks=True).params
    torch.stack(
        [curved(end, outer) for end, outer in zip(ends, outer_batch, strict=True)]
    ).mean().backward()
    torch.testing.assert_close(params.grad, expected.grads.params, rtol=1e-12, atol=0)


def test_so_does_each_task_that_chooses_its_own_steps(device):
    params, batch, outer_batch = several(device)
    solver = Adaptive(1e-4, 1e-6)
    opt = ODEOptimizer(GradientFlow(curved), solver, odeopt.TruncatedAdjoint(3))
    grid = TimeGrid.uniform(torch.tensor([0.5, 1.0, 2.0], device=device), 2)
    together = opt.value_and_grad(curved, tasks=True)(params, batch, grid, outer_batch)
    alone = [
        opt.value_and_grad(curved)(
            params, batch[k], TimeGrid.uniform(float(grid.times[k, -1]), 2), outer_batch[k]
        )
        for k in range(3)
    ]
    assert len({res.stats.steps for res in alone}) == 3
    mean = torch.stack([res.grads.params for res in alone]).mean(0)
    torch.testing.assert_close(together.grads.params, mean, rtol=1e-9, atol=0)


def test_where_the_number_of_steps_is_hidden_it_is_refused(device):
    params, batch, _ = several(device)
    opt = ODEOptimizer(GradientFlow(curved), adjoint=odeopt.TruncatedAdjoint(3))
    grid = TimeGrid.from_lr(0.05, 8)

    def end(stop):
        return opt.solve(params, batch[0], grid.stopping(stop)).params.sum()

    params.requires_grad_()
    with pytest.raises(odeopt.CompatibilityError, match=r"hidden by torch\.func\.vmap"):
        torch.func.vmap(end)(torch.tensor([3, 8], device=device))
