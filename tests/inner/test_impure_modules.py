"""Modules that draw random numbers or change buffers, and arguments that are refused."""

from __future__ import annotations

import pytest
import torch
from support.module import is_head, make_batch, make_net, mse, outer, unrolled, with_grad
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import odeopt


@pytest.mark.parametrize("norm", [
    nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True), nn.SyncBatchNorm(2),
], ids=lambda norm: type(norm).__name__)  # fmt: skip
def test_running_statistics_become_buffers_which_a_flow_refuses_with_advice(device, norm):
    net = nn.Sequential(nn.Linear(3, 2), norm.train()).to(device, torch.float64)
    problem = odeopt.from_module(net, mse)
    assert sorted(problem.buffers) == ["1.running_mean", "1.running_var"]
    with pytest.raises(odeopt.InputError, match=r"updates running statistics .*module\.eval\(\)"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).solve(
            problem.params, make_batch(device), odeopt.TimeGrid.from_lr(0.1, 3)
        )


@pytest.mark.parametrize("child", [
    nn.Dropout(0.1), nn.Dropout1d(0.5), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1),
    nn.RReLU(),
], ids=lambda child: type(child).__name__)  # fmt: skip
def test_random_modules_without_a_seed_are_refused_with_advice(device, child):
    net = nn.Sequential(nn.Linear(3, 2), child).to(device, torch.float64)
    problem = odeopt.from_module(net, mse)
    with pytest.raises(odeopt.NondeterminismError, match=r"module\.eval\(\).*Stream\.constant"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).solve(
            problem.params, make_batch(device), odeopt.TimeGrid.from_lr(0.1, 3)
        )


def test_dropout_deep_inside_is_found(device):
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).to(device, torch.float64)
    problem = odeopt.from_module(net, lambda model, batch: model(batch).square().mean())
    batch = torch.randn(2, 5, 4, device=device, dtype=torch.float64)
    with pytest.raises(odeopt.NondeterminismError, match="drew random numbers"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).solve(
            problem.params, batch, odeopt.TimeGrid.from_lr(0.1, 3)
        )


@pytest.mark.parametrize("child", [
    nn.BatchNorm1d(2), nn.Dropout(0.5), nn.RReLU(),
], ids=lambda child: type(child).__name__)  # fmt: skip
def test_eval_mode_works(device, child):
    net, batch = (
        nn.Sequential(nn.Linear(3, 2), child).to(device, torch.float64).eval(),
        make_batch(device),
    )
    problem = odeopt.from_module(net, mse)
    params = with_grad(problem.params)
    end = unrolled(problem.loss, params, batch, None, 0.1, 3)
    expected = torch.autograd.grad(outer(end, batch), list(params.values()))
    res = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).value_and_grad(outer)(
        problem.params, batch, odeopt.TimeGrid.from_lr(0.1, 3), batch
    )
    torch.testing.assert_close(tuple(res.grads.params.values()), expected)


@pytest.mark.parametrize("child", [
    nn.Dropout(0.0), nn.BatchNorm1d(2, track_running_stats=False), nn.GroupNorm(1, 2),
], ids=lambda child: type(child).__name__)  # fmt: skip
def test_modules_that_are_pure_in_train_mode_are_accepted(device, child):
    net, batch = nn.Sequential(nn.Linear(3, 2), child).to(device, torch.float64), make_batch(device)
    problem = odeopt.from_module(net, mse)
    torch.testing.assert_close(problem.loss(problem.params, batch), mse(net, batch))


@pytest.mark.parametrize("make", [
    nn.RReLU, lambda: spectral_norm(nn.Linear(2, 2)),
], ids=["RReLU", "spectral norm"])  # fmt: skip
def test_other_impure_modules_do_not_give_a_gradient_silently(device, make):
    net, batch = (
        nn.Sequential(nn.Linear(3, 2), make()).to(device, torch.float64),
        make_batch(device),
    )
    with pytest.raises((odeopt.OdeoptError, RuntimeError)):  # noqa: PT012
        problem = odeopt.from_module(net, mse)
        odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).value_and_grad(outer)(
            problem.params, batch, odeopt.TimeGrid.from_lr(0.1, 4), batch
        )


def test_a_module_that_changes_a_buffer_of_its_own_does_not_give_a_gradient_silently(device):
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            with torch.no_grad():
                self.calls += 1
            return super().forward(x) * self.calls

    net, batch = Counting().to(device), make_batch(device)
    problem = odeopt.from_module(net, mse)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss))
    with pytest.raises((odeopt.OdeoptError, RuntimeError)):
        opt.value_and_grad(outer)(problem.params, batch, odeopt.TimeGrid.from_lr(0.1, 4), batch)


def test_activation_checkpointing_inside_is_right_or_refused(device):
    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return checkpoint(lambda z: torch.tanh(self.inner(z)), x, use_reentrant=False)

    net, batch = Recomputed().to(device), make_batch(device)
    problem = odeopt.from_module(net, mse)
    other = {name: p + 1.0 for name, p in problem.params.items()}
    try:
        found = torch.func.grad(problem.loss)(other, batch)
    except (odeopt.OdeoptError, RuntimeError):
        found = None
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(other[name])
    expected = torch.autograd.grad(
        ((torch.tanh(net.inner(batch[0])) - batch[1]) ** 2).mean(), list(net.parameters())
    )
    assert found is None or torch.allclose(found["inner.weight"], expected[0])


def test_adapting_nothing_is_refused(device):
    with pytest.raises(odeopt.InputError, match=r"adapt chose none of .*0\.bias.*at least one"):
        odeopt.from_module(make_net(device), mse, adapt=lambda name: False)


def test_a_module_without_parameters_is_refused():
    with pytest.raises(odeopt.InputError, match="choose at least one"):
        odeopt.from_module(nn.ReLU(), mse)


def test_an_objective_that_is_no_scalar_is_refused(device):
    problem = odeopt.from_module(make_net(device), lambda model, batch: model(batch[0]))
    with pytest.raises(odeopt.InputError, match=r"objective returned shape \(6, 2\)"):
        problem.loss(problem.params, make_batch(device))


def test_leaving_out_the_frozen_parameters_is_refused(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss))
    with pytest.raises(odeopt.CapturedTensorError, match="hparams"):
        opt.solve(problem.params, batch, odeopt.TimeGrid.from_lr(0.1, 2))
