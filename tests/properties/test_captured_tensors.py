"""Tensors that a loss captures instead of receiving: their gradient would be lost."""

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
    RK4,
    Adaptive,
    Binomial,
    ContinuousAdjoint,
    DormandPrince,
    FirstOrderAdjoint,
    GradientFlow,
    HeavyBall,
    ODEOptimizer,
    RegularizedFlow,
    TimeGrid,
)


@both
@pytest.mark.parametrize("choices", [
    {}, {"solver": Adaptive()}, {"solver": DormandPrince(), "adjoint": ContinuousAdjoint(RK4())},
    {"adjoint": FirstOrderAdjoint()}, {"checkpoints": Binomial(2)},
], ids=["default", "adaptive", "torchdiffeq", "first order", "binomial"])  # fmt: skip
def test_a_hyperparameter_captured_by_the_loss_is_refused(device, run, choices):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(lambda p, b: mu * quadratic(p, b)), **choices)
    with pytest.raises(odeopt.CapturedTensorError, match="Pass it in hparams, or detach it"):
        run(opt, total, ones(device), ones(device), GRID)


@both
def test_a_captured_hyperparameter_is_refused_with_tasks(device, run):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(lambda p, b: mu * quadratic(p, b)))
    with pytest.raises(odeopt.CapturedTensorError, match="the loss"):
        run(opt, total, ones(device), ones(device, 3, 2), GRID, tasks=True)


@both
def test_a_captured_additive_tensor_is_refused(device, run):
    shift = torch.zeros(2, device=device, requires_grad=True)
    opt = ODEOptimizer(lambda t, y, c, hp, b: -y + shift)
    with pytest.raises(odeopt.CapturedTensorError, match="velocity"):
        run(opt, total, ones(device), ones(device), GRID)


@both
def test_a_module_captured_by_the_loss_is_refused(device, run):
    net = torch.nn.Linear(2, 1, device=device)
    opt = ODEOptimizer(GradientFlow(lambda p, b: net(p).square().sum()))
    with pytest.raises(odeopt.CapturedTensorError, match="from_module"):
        run(opt, total, ones(device), ones(device), GRID)


@both
@pytest.mark.parametrize("make", [
    lambda mu: GradientFlow(quadratic, weight_decay=lambda hp: mu),
    lambda mu: RegularizedFlow(quadratic, strength=lambda hp: mu),
    lambda mu: HeavyBall(quadratic, damping=lambda hp: mu),
    lambda mu: RegularizedFlow(quadratic, 1.0, center=lambda hp: mu),
], ids=["weight_decay", "strength", "damping", "center"])  # fmt: skip
def test_a_selector_that_returns_a_captured_tensor_is_refused(device, run, make):
    mu = torch.tensor([0.5, 0.5], device=device, requires_grad=True)
    opt = ODEOptimizer(make(mu))
    with pytest.raises(odeopt.CapturedTensorError, match="hparams"):
        run(opt, total, ones(device), ones(device), GRID, hparams={"x": ones(device)})


def test_a_tensor_captured_by_the_outer_loss_is_refused(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: mu * p.sum())
    with pytest.raises(odeopt.CapturedTensorError, match=r"outer_loss .* Pass it in hparams"):
        call(ones(device), ones(device), GRID, ones(device))


def test_a_tensor_captured_by_the_outer_loss_is_refused_with_tasks(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(
        lambda p, b: (p * b).sum() + mu, tasks=True
    )
    with pytest.raises(odeopt.CapturedTensorError, match="outer_loss"):
        call(ones(device), ones(device, 3, 2), GRID, ones(device, 3, 2))


def test_a_tensor_captured_by_the_outer_loss_is_refused_without_steps(device):
    mu = torch.tensor(0.5, device=device, requires_grad=True)
    call = ODEOptimizer(GradientFlow(quadratic)).value_and_grad(lambda p, b: mu * p.sum())
    with pytest.raises(odeopt.CapturedTensorError, match="outer_loss"):
        call(ones(device), ones(device), TimeGrid.from_lr(0.1, 0), ones(device))


@pytest.mark.parametrize(("make", "what"), [
    (lambda x: GradientFlow(quadratic, weight_decay=x), "weight_decay"),
    (lambda x: RegularizedFlow(quadratic, strength=x), "strength"),
    (lambda x: RegularizedFlow(quadratic, 1.0, weight_decay=x), "weight_decay"),
    (lambda x: HeavyBall(quadratic, damping=x), "damping"),
    (lambda x: HeavyBall(quadratic, 1.0, weight_decay=x), "weight_decay"),
])  # fmt: skip
def test_a_constructor_refuses_a_tensor_that_requires_grad(device, make, what):
    x = torch.tensor(0.5, device=device, requires_grad=True)
    with pytest.raises(odeopt.CapturedTensorError, match=rf"^{what} is a .*hparams\['{what}'\]"):
        make(x)
