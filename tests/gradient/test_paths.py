"""value_and_grad, vmap of grad, grad of vmap and backward agree."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    ALL,
    CHOICES,
    STEPS,
    TASKS,
    assert_close,
    at,
    optimizer,
    outer,
    problem,
    requiring_grad,
    stack,
)
from torch.utils import _pytree as pytree

from odeopt import (
    TimeGrid,
)


def objective(opt, grid):
    """One task's outer loss after a solve."""

    def value(params, hparams, batch, outer_batch):
        return outer(opt.solve(params, batch, grid, hparams).params, outer_batch, hparams)

    return value


OVER_TASKS = {"in_dims": (None, None, 0, 0)}


@pytest.mark.parametrize("name", CHOICES)
def test_vmap_of_grad_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(
        params, requiring_grad(batch), grid, outer_batch, hparams
    )
    per_task = torch.func.vmap(torch.func.grad(objective(opt, grid), (0, 1, 2)), **OVER_TASKS)
    g_params, g_hparams, g_batch = per_task(params, hparams, batch, outer_batch)
    assert_close(pytree.tree_map(lambda g: g.mean(0), g_params), res.grads.params)
    assert_close(pytree.tree_map(lambda g: g.mean(0), g_hparams), res.grads.hparams)
    assert_close(g_batch, res.grads.batch)


@pytest.mark.parametrize("name", CHOICES)
def test_grad_of_vmap_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(
        params, requiring_grad(batch), grid, outer_batch, hparams
    )
    one = objective(opt, grid)
    total = lambda *args: torch.func.vmap(one, **OVER_TASKS)(*args).sum()  # noqa: E731
    grads = torch.func.grad(total, (0, 1, 2))(params, hparams, batch, outer_batch)
    shared = pytree.tree_map(lambda g: g / TASKS, grads[:2])
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(grads[2], res.grads.batch)


@pytest.mark.parametrize("name", CHOICES)
def test_backward_of_vmap_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, opt, grid = requiring_grad(batch), optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    values = torch.func.vmap(objective(opt, grid), **OVER_TASKS)(*leaves, batch, outer_batch)
    values.sum().backward()
    shared = pytree.tree_map(lambda leaf: leaf.grad / TASKS, leaves)
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(pytree.tree_map(lambda leaf: leaf.grad, batch), res.grads.batch)


@pytest.mark.parametrize("name", ["euler", "midpoint-binomial", "continuous"])
def test_hparams_of_each_task_under_vmap(name, device):
    """Params and hparams with a task dimension of their own."""
    params, batch, outer_batch, hparams = problem(device)
    params, hparams = stack([params] * TASKS), stack([hparams] * TASKS)
    one = objective(optimizer(name), TimeGrid.uniform(0.6, STEPS))
    expected = torch.func.vmap(torch.func.grad(one, (0, 1)))(params, hparams, batch, outer_batch)
    total = lambda *args: torch.func.vmap(one)(*args).sum()  # noqa: E731
    found = torch.func.grad(total, (0, 1))(params, hparams, batch, outer_batch)
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["euler", "rk4-density"])
def test_learning_rates_of_each_task_under_vmap(name, device):
    params, batch, outer_batch, hparams = problem(device)
    lr = torch.rand(TASKS, STEPS, device=device) / 5
    opt = optimizer(name)
    res = opt.value_and_grad(outer, tasks=True)(
        params, batch, TimeGrid.from_lr(lr), outer_batch, hparams
    )

    def value(lr, batch, outer_batch):
        sol = opt.solve(params, batch, TimeGrid.from_lr(lr), hparams)
        return outer(sol.params, outer_batch, hparams)

    assert_close(torch.func.vmap(torch.func.grad(value))(lr, batch, outer_batch), res.grads.dt)


@pytest.mark.parametrize("name", ALL)
def test_solve_with_tasks_gives_the_same_gradient(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, opt = requiring_grad(batch), optimizer(name)
    t1 = torch.tensor([0.6, 0.1, 0.3, 0.9], device=device, requires_grad=True)
    grid = TimeGrid.uniform(t1, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    sol = opt.solve(leaves[0], batch, grid, leaves[1], tasks=True)
    values = torch.func.vmap(outer, in_dims=(0, 0, None))(sol.params, outer_batch, leaves[1])
    values.sum().backward()
    per_task = pytree.tree_map(lambda leaf: leaf.grad, (batch, t1))
    shared = pytree.tree_map(lambda leaf: leaf.grad / TASKS, leaves)
    assert_close(values.detach(), res.values)
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(per_task, (res.grads.batch, res.grads.dt.mean(-1)))


@pytest.mark.parametrize("name", ALL)
def test_backward_through_one_solve_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch, opt = requiring_grad(at(batch, 1)), outer_batch[1], optimizer(name)
    lr = torch.linspace(0.05, 0.15, STEPS, device=device).requires_grad_()
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    sol = opt.solve(leaves[0], batch, TimeGrid.from_lr(lr), leaves[1])
    outer(sol.params, outer_batch, leaves[1]).backward()
    found = pytree.tree_map(lambda leaf: leaf.grad, (*leaves, batch, lr))
    assert_close(found, (res.grads.params, res.grads.hparams, res.grads.batch, res.grads.dt))
