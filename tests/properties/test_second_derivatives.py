"""Second derivatives through a solve are refused by name."""

from __future__ import annotations

import pytest
import torch
from support.safety import (
    distance,
    ones,
    quadratic,
    quartic,
)
from torch.autograd import forward_ad

import odeopt
from odeopt import (
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


def end_value(params, batch, lr):
    grid = TimeGrid.from_lr(lr, 3)
    return distance(ODEOptimizer(GradientFlow(quartic)).solve(params, batch, grid).params, batch)


def test_differentiating_twice_by_autograd_is_refused(device):
    x = ones(device).requires_grad_()
    value = end_value(x, ones(device), 0.1)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(odeopt.SecondOrderError, match="second derivative through a solve"):
        torch.autograd.grad(gradient.sum(), x)


@pytest.mark.parametrize("hessian", [
    torch.func.hessian,
    lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    lambda f: lambda x: torch.autograd.functional.hessian(f, x),
], ids=["func.hessian", "jacrev of jacrev", "autograd.functional.hessian"])  # fmt: skip
def test_a_hessian_is_refused(device, hessian):
    with pytest.raises(odeopt.SecondOrderError, match="second derivative"):
        hessian(lambda x: end_value(x, ones(device), 0.1))(ones(device))


def test_a_second_derivative_with_respect_to_the_learning_rate_is_refused(device):
    second = torch.func.grad(torch.func.grad(lambda lr: end_value(ones(device), ones(device), lr)))
    with pytest.raises(odeopt.SecondOrderError, match="second derivative"):
        second(torch.tensor(0.1, device=device))


@pytest.mark.parametrize("name", ["params", "hparams", "batch", "outer_batch", "lr", "state"])
def test_value_and_grad_inside_a_gradient_is_refused(device, name):
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(quadratic)
    inputs = {key: ones(device) for key in ("params", "hparams", "batch", "outer_batch", "state")}
    inputs["lr"] = torch.tensor(0.1, device=device)

    def value(x):
        chosen = {**inputs, name: x}
        return call(grid=TimeGrid.from_lr(chosen.pop("lr"), 3), **chosen).value

    with pytest.raises(odeopt.SecondOrderError, match=r"inside torch.func.grad.*opt.solve"):
        torch.func.grad(value)(inputs[name])


def test_value_and_grad_inside_vmap_is_refused(device):
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(quadratic)
    x, grid = ones(device), TimeGrid.from_lr(0.1, 3)
    for value in (lambda p: call(p, x, grid, x).value, lambda b: call(x, b, grid, x).value):
        with pytest.raises(odeopt.CompatibilityError, match=r"inside torch.func.vmap.*tasks=True"):
            torch.func.vmap(value)(torch.stack([x, x]))


@pytest.mark.parametrize("name", ["params", "batch", "lr"])
def test_tangents_are_refused(device, name):
    inputs = {key: ones(device) for key in ("params", "batch")}
    inputs["lr"] = torch.tensor(0.1, device=device)
    call = ODEOptimizer(GradientFlow(quartic)).value_and_grad(distance)

    def value(x):
        return end_value(**{**inputs, name: x})

    def through_call(x):
        chosen = {**inputs, name: x}
        grid = TimeGrid.from_lr(chosen.pop("lr"), 3)
        return call(grid=grid, outer_batch=ones(device), **chosen).value

    x = inputs[name]
    for function in (value, through_call):
        with pytest.raises(odeopt.SecondOrderError, match=r"with tangents .*jacrev"):
            torch.func.jvp(function, (x,), (torch.ones_like(x),))
    with forward_ad.dual_level(), pytest.raises(odeopt.SecondOrderError, match="with tangents"):
        value(forward_ad.make_dual(x, torch.ones_like(x)))
