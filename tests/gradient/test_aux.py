"""What losses return beside their value."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    STEPS,
    assert_close,
    at,
    inner,
    optimizer,
    outer,
    problem,
)
from torch.utils import _pytree as pytree

from odeopt import (
    RK4,
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


def outer_with_aux(params, batch, hparams):
    prediction = batch @ params["w"]
    return outer(params, batch, hparams), {"prediction": prediction, "norm": params["v"].norm()}


@pytest.mark.parametrize("tasks", [False, True])
def test_aux_of_the_outer_loss(tasks, device):
    params, batch, outer_batch, hparams = problem(device)
    if not tasks:
        batch, outer_batch = at(batch, 0), outer_batch[0]
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer_with_aux, tasks=tasks, has_aux=True)(
        params, batch, grid, outer_batch, hparams
    )
    plain = opt.value_and_grad(outer, tasks=tasks)(params, batch, grid, outer_batch, hparams)
    end = opt.solve(params, batch, grid, hparams, tasks=tasks).params
    assert_close(res.aux["prediction"], outer_batch @ end["w"])
    assert_close(res.aux["norm"], end["v"].norm(dim=-1))
    assert_close(res.grads.params, plain.grads.params)
    assert plain.aux is None
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(res.aux))


@pytest.mark.parametrize("tasks", [False, True])
def test_aux_of_the_inner_loss_is_dropped(tasks, device):
    params, batch, outer_batch, hparams = problem(device)
    if not tasks:
        batch, outer_batch = at(batch, 0), outer_batch[0]
    with_aux = lambda *args: (inner(*args), args[0])  # noqa: E731
    grid = TimeGrid.uniform(0.6, STEPS)
    found, expected = (
        ODEOptimizer(field, RK4()).value_and_grad(outer, tasks=tasks)(
            params, batch, grid, outer_batch, hparams
        )
        for field in (GradientFlow(with_aux, has_aux=True), GradientFlow(inner))
    )
    assert torch.equal(found.grads.params["w"], expected.grads.params["w"])


def test_a_skipped_task_is_left_out_of_the_means(device):
    params, batch, outer_batch, hparams = problem(device)
    bad = [batch[0].clone(), batch[1].clone()]
    bad[1][2] = torch.inf
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True, on_failure="skip")(
        params, tuple(bad), grid, outer_batch, hparams
    )
    rest = [0, 1, 3]
    expected = opt.value_and_grad(outer, tasks=True)(
        params, at(batch, rest), grid, outer_batch[rest], hparams
    )
    assert (res.status != 0).tolist() == [False, False, True, False]
    assert_close(res.value, expected.value)
    assert_close(res.grads.params, expected.grads.params)
    assert_close(res.grads.hparams, expected.grads.hparams)
