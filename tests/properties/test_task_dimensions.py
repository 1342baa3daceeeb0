"""Batches and grids whose task dimensions do not fit."""

from __future__ import annotations

import pytest
import torch
from support.safety import (
    GRID,
    both,
    ones,
    quadratic,
    total,
)

import odeopt
from odeopt import (
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


@both
@pytest.mark.parametrize("second", [(2, 2), ()])
def test_a_batch_without_a_leading_task_dimension_is_refused(device, run, second):
    batch = {"x": ones(device, 3, 2), "y": torch.ones(second, device=device)}
    opt = ODEOptimizer(GradientFlow(lambda p, b: p.sum()))
    with pytest.raises(odeopt.InputError, match=r"batch\['y'\] has shape .*dimension of 3, since"):
        run(opt, total, ones(device), batch, GRID, tasks=True)


@pytest.mark.parametrize("shape", [(2, 2), ()])
def test_an_outer_batch_without_a_leading_task_dimension_is_refused(device, shape):
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(total, tasks=True)
    with pytest.raises(odeopt.InputError, match=r"outer_batch.* has shape .*task dimension of 3"):
        call(ones(device), ones(device, 3, 2), GRID, torch.ones(shape, device=device))


@both
def test_tasks_that_nothing_counts_are_refused(device, run):
    opt = ODEOptimizer(GradientFlow(lambda p, b: p.sum()))
    with pytest.raises(odeopt.InputError, match="neither the batch nor the grid has a task dimens"):
        run(opt, total, ones(device), {"name": "x"}, GRID, tasks=True)


@both
def test_no_tasks_at_all_are_refused(device, run):
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match="task dimension has length 0"):
        run(opt, total, ones(device), torch.ones(0, 2, device=device), GRID, tasks=True)


@both
def test_a_grid_with_tasks_is_refused_without_tasks(device, run):
    grid = TimeGrid.uniform(torch.ones(3, device=device), 4)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"grid holds 3 tasks, .*pass tasks=True"):
        run(opt, total, ones(device), ones(device), grid)


@both
def test_a_grid_for_another_number_of_tasks_is_refused(device, run):
    grid = TimeGrid.uniform(torch.ones(3, device=device), 4)
    opt = ODEOptimizer(GradientFlow(quadratic))
    with pytest.raises(odeopt.InputError, match=r"3.*tasks|task.* 3"):
        run(opt, total, ones(device), ones(device, 2, 2), grid, tasks=True)
