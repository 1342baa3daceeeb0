"""Tasks that have stopped: steps of zero length."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    ALL,
    GRIDS,
    STEPS,
    assert_close,
    optimizer,
    problem,
)

from odeopt import (
    GradientFlow,
    TimeGrid,
)


def rooted(params, batch, hparams):
    """Its gradient is not finite where the batch is zero."""
    return hparams["a"] * ((batch * params).square().sum().sqrt() + (batch - params).cosh().sum())


def rooted_outer(params, batch, hparams):
    return (batch * params).sum() * hparams["a"]


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_task_survives_a_velocity_that_is_not_finite(name, device):
    params = torch.tensor([0.5, -0.3], device=device)
    batch = torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.3, -0.7]], device=device).requires_grad_()
    hparams = {"a": torch.tensor(0.7, device=device)}
    grid = TimeGrid.uniform(torch.tensor([0.5, 0.0, 0.4], device=device), STEPS)
    opt = optimizer(name, GradientFlow(rooted))
    run = opt.value_and_grad(rooted_outer, tasks=True)
    outer_batch = torch.ones(3, 2, device=device)
    res = run(params, batch, grid, outer_batch, hparams)
    rest = [0, 2]
    expected = run(
        params, batch[rest].detach().requires_grad_(),
        TimeGrid(grid.times[rest], dt=grid.dt[rest]), outer_batch[rest], hparams,
    )  # fmt: skip
    assert torch.equal(res.values[1], rooted_outer(params, outer_batch[1], hparams))
    assert_close(res.values[rest], expected.values)
    assert_close(res.grads.params, (2 * expected.grads.params + hparams["a"]) / 3)
    assert_close(res.grads.batch[rest], expected.grads.batch)
    if name != "first-order":
        assert not res.grads.batch[1].any()
        assert_close(res.grads.dt[rest], expected.grads.dt)
    direct = params.sum()
    assert_close(res.grads.hparams["a"], (2 * expected.grads.hparams["a"] + direct) / 3)


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_task_keeps_its_params_exactly(name, device):
    params, batch, _, hparams = problem(device)
    grid = GRIDS["horizons"](device)
    sol = optimizer(name).solve(params, batch, grid, hparams, tasks=True)
    assert torch.equal(sol.params["w"][2], params["w"])
    assert not torch.equal(sol.params["w"][0], params["w"])


@pytest.mark.parametrize("name", ["euler", "rk4-density", "continuous", "adaptive"])
def test_a_solve_through_a_frozen_task_has_finite_gradients(name, device):
    params = torch.tensor([0.5, -0.3], device=device, requires_grad=True)
    batch = torch.tensor([[1.0, 0.5], [0.0, 0.0]], device=device, requires_grad=True)
    hparams = {"a": torch.tensor(0.7, device=device, requires_grad=True)}
    grid = TimeGrid.uniform(torch.tensor([0.5, 0.0], device=device), STEPS)
    opt = optimizer(name, GradientFlow(rooted))
    opt.solve(params, batch, grid, hparams, tasks=True).params.sum().backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in (params, batch, hparams["a"]))
