"""Tasks solved together are tasks solved one by one."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    ALL,
    CHOICES,
    EXACT,
    GRIDS,
    STEPS,
    TASKS,
    assert_close,
    at,
    inner,
    mean,
    optimizer,
    outer,
    problem,
    requiring_grad,
    stack,
)

from odeopt import (
    Adaptive,
    GradientFlow,
    ODEOptimizer,
    PIController,
    TimeGrid,
)


def row(grid, task):
    if grid.tasks is None:
        return grid
    return TimeGrid(grid.times[task], grid.observe, dt=grid.dt[task])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ALL)
def test_tasks_equal_a_loop_over_them(name, grid, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, grid = requiring_grad(batch), GRIDS[grid](device)
    opt = optimizer(name)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    alone = [
        opt.value_and_grad(outer)(
            params, requiring_grad(at(batch, k)), row(grid, k), outer_batch[k], hparams
        )
        for k in range(TASKS)
    ]
    tolerance = EXACT if name in CHOICES else 1e-10
    assert_close(res.values, torch.stack([one.value for one in alone]), tolerance)
    assert_close(res.value, res.values.mean(), tolerance)
    assert_close(res.grads.params, mean([one.grads.params for one in alone]), tolerance)
    assert_close(res.grads.hparams, mean([one.grads.hparams for one in alone]), tolerance)
    assert_close(res.grads.dt, torch.stack([one.grads.dt for one in alone]), tolerance)
    assert_close(res.grads.batch, stack([one.grads.batch for one in alone]), tolerance)


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_tasks_does_not_matter(name, device):
    params, batch, outer_batch, hparams = problem(device)
    grid = TimeGrid.uniform(torch.tensor([0.6, 0.1, 0.3, 0.9], device=device), STEPS)
    order = torch.tensor([2, 0, 3, 1], device=device)
    opt = optimizer(name)
    run = opt.value_and_grad(outer, tasks=True)
    res = run(params, batch, grid, outer_batch, hparams)
    moved = run(
        params, at(batch, order), TimeGrid(grid.times[order], dt=grid.dt[order]),
        outer_batch[order], hparams,
    )  # fmt: skip
    assert_close(moved.values, res.values[order])
    assert_close(moved.grads.dt, res.grads.dt[order])
    assert_close(moved.grads.params, res.grads.params)
    assert_close(moved.grads.hparams, res.grads.hparams)


def test_one_task_is_a_mean_over_one(device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    found = opt.value_and_grad(outer, tasks=True)(
        params, at(batch, slice(0, 1)), grid, outer_batch[:1], hparams
    )
    expected = opt.value_and_grad(outer)(params, at(batch, 0), grid, outer_batch[0], hparams)
    assert_close(found.grads.params, expected.grads.params)
    assert_close(found.grads.dt, expected.grads.dt[None])


@pytest.mark.parametrize("solver", [Adaptive(1e-6, 1e-8, controller=PIController(per_task=False))])
def test_common_steps_give_the_gradient_of_each_task(solver, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = ODEOptimizer(GradientFlow(inner), solver), TimeGrid.uniform(0.9, 2)
    fine = ODEOptimizer(GradientFlow(inner), Adaptive(1e-10, 1e-12))
    found, expected = (
        o.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
        for o in (opt, fine)
    )
    assert_close(found.grads.params, expected.grads.params, 1e-4)
    assert_close(found.grads.hparams, expected.grads.hparams, 1e-4)
