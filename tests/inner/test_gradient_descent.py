"""Gradient flow with Euler steps is torch.optim.SGD; centres and inertia."""

from __future__ import annotations

import pytest
import torch
from odeopt_plugins.nesterov_flow import NesterovFlow
from support.fields import (
    loss,
    make_batch,
    make_params,
)

import odeopt
from odeopt.tools import tree


@pytest.mark.parametrize("weight_decay", [0.0, 0, 0.1, 3e-4, 1])
def test_euler_on_gradient_flow_is_sgd_bit_for_bit(device, weight_decay):
    params, batch = make_params(device), make_batch(device)
    own = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    names = list(params)
    sgd = torch.optim.SGD(own, lr=0.05, weight_decay=weight_decay)
    for _ in range(50):
        sgd.zero_grad()
        loss(dict(zip(names, own, strict=True)), batch).backward()
        sgd.step()
    field = odeopt.GradientFlow(loss, weight_decay=weight_decay)
    sol = odeopt.ODEOptimizer(field).solve(params, batch, odeopt.TimeGrid.from_lr(0.05, 50))
    assert all(torch.equal(sol.params[name], leaf) for name, leaf in zip(names, own, strict=True))


def test_sgd_with_a_rate_per_step_is_bit_equal(device):
    params, batch, rates = make_params(device), make_batch(device), [0.1, 0.03, 0.2, 0.07]
    own = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    sgd = torch.optim.SGD(own.values(), lr=0.1)
    for lr in rates:
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        loss(own, batch).backward()
        sgd.step()
    field = odeopt.GradientFlow(loss)
    sol = odeopt.ODEOptimizer(field).solve(params, batch, odeopt.TimeGrid.from_lr(rates))
    assert all(torch.equal(sol.params[name], own[name]) for name in own)


def test_the_center_is_the_initialisation_by_default(device):
    params = make_params(device)
    _, consts = odeopt.RegularizedFlow(loss, 1.0).init(params, None)
    assert consts is params


def test_strength_stands_for_half_of_it_times_the_squared_distance(device):
    field = odeopt.RegularizedFlow(lambda p, b: 0.0 * p.sum(), strength=3.0)
    y, c = torch.randn(4, device=device), torch.randn(4, device=device)
    t = torch.zeros((), device=device)
    expected = 1.5 * ((y - c) ** 2).sum()
    torch.testing.assert_close(field.potential(t, y, c, None, None), expected)
    torch.testing.assert_close(field.velocity(t, y, c, None, None), -3.0 * (y - c))


@pytest.mark.parametrize("field", [
    odeopt.HeavyBall(loss, damping=1.0), NesterovFlow(loss),
], ids=["heavy ball", "nesterov"])  # fmt: skip
def test_fields_with_inertia_start_at_rest_and_read_out_the_place(device, field):
    params = make_params(device)
    (u, v), consts = field.init(params, None)
    assert u is params
    assert all(not leaf.any() for leaf in tree.leaves(v))
    assert consts == ()
    assert field.readout((u, v)) is params
