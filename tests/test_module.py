"""Modules taken apart for an inner optimisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import odeopt


def mse(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def outer(params, batch, hparams=None):
    return sum((p**2).sum() for p in params.values())


def make_net(device):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)


def make_batch(device):
    return torch.randn(6, 3, device=device), torch.randn(6, 2, device=device)


def is_head(name):
    return name.startswith("2.")


def unrolled(loss, params, batch, hparams, lr, steps):
    """Gradient descent as a plain loop with autograd."""
    for _ in range(steps):
        value = loss(params, batch) if hparams is None else loss(params, batch, hparams)
        gradients = torch.autograd.grad(value, list(params.values()), create_graph=True)
        params = {n: p - lr * g for (n, p), g in zip(params.items(), gradients, strict=True)}
    return params


def with_grad(tensors):
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}


def test_parameters_are_split_by_name(device):
    problem = odeopt.from_module(make_net(device), mse, adapt=is_head)
    assert sorted(problem.params) == ["2.bias", "2.weight"]
    assert sorted(problem.hparams) == ["0.bias", "0.weight"]


def test_all_parameters_are_adapted_by_default(device):
    net = make_net(device)
    problem = odeopt.from_module(net, mse)
    assert sorted(problem.params) == sorted(name for name, _ in net.named_parameters())
    assert problem.hparams is None


def test_params_are_detached_copies(device):
    net = make_net(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    for name, copy in {**problem.params, **problem.hparams}.items():
        own = net.get_parameter(name)
        assert torch.equal(copy, own)
        assert not copy.requires_grad
        assert copy.data_ptr() != own.data_ptr()


def test_the_loss_is_that_of_the_module(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse)
    assert torch.equal(problem.loss(problem.params, batch), mse(net, batch))


def test_the_loss_with_frozen_parameters_is_that_of_the_module(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    assert torch.equal(problem.loss(problem.params, batch, problem.hparams), mse(net, batch))


def test_the_loss_uses_the_parameters_it_is_given(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    zeros = {name: torch.zeros_like(p) for name, p in problem.params.items()}
    expected = (batch[1] ** 2).mean()
    torch.testing.assert_close(problem.loss(zeros, batch, problem.hparams), expected)


def test_gradients_of_frozen_parameters_agree_with_an_unrolled_loop(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    params, hparams = with_grad(problem.params), with_grad(problem.hparams)
    end = unrolled(problem.loss, params, batch, hparams, 0.2, 5)
    expected = torch.autograd.grad(outer(end, batch), [*params.values(), *hparams.values()])
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss))
    res = opt.value_and_grad(outer)(
        problem.params, batch, odeopt.TimeGrid.from_lr(0.2, 5), batch, hparams=problem.hparams
    )
    found = (*res.grads.params.values(), *res.grads.hparams.values())
    torch.testing.assert_close(found, expected)


def test_solve_reaches_the_frozen_parameters_too(device):
    net, batch = make_net(device), make_batch(device)
    problem = odeopt.from_module(net, mse, adapt=is_head)
    hparams = with_grad(problem.hparams)
    end = unrolled(problem.loss, with_grad(problem.params), batch, hparams, 0.2, 4)
    expected = torch.autograd.grad(outer(end, batch), list(hparams.values()))
    sol = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).solve(
        problem.params, batch, odeopt.TimeGrid.from_lr(0.2, 4), hparams=hparams
    )
    found = torch.autograd.grad(outer(sol.params, batch), list(hparams.values()))
    torch.testing.assert_close(found, expected)


def test_the_module_is_unchanged_by_a_solve(device):
    net, batch = make_net(device), make_batch(device)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    problem = odeopt.from_module(net, mse)
    odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss)).value_and_grad(outer)(
        problem.params, batch, odeopt.TimeGrid.from_lr(0.2, 3), batch
    )
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net.training


def test_later_changes_of_the_module_do_not_reach_the_loss(device):
    net = make_net(device).append(nn.BatchNorm1d(2)).to(device).eval()
    batch = make_batch(device)
    problem = odeopt.from_module(net, mse)
    before = problem.loss(problem.params, batch)
    with torch.no_grad():
        for tensor in [*net.parameters(), net[-1].running_mean]:
            tensor.add_(1.0)
    assert torch.equal(problem.loss(problem.params, batch), before)


def test_tied_weights_count_once_and_get_both_gradients(device):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    net, batch = Tied().to(device), (torch.randn(4, 3, device=device),) * 2
    problem = odeopt.from_module(net, mse)
    assert list(problem.params) == ["first.weight"]
    (expected,) = torch.autograd.grad(mse(net, batch), list(net.parameters()))
    found = torch.func.grad(problem.loss)(problem.params, batch)
    torch.testing.assert_close(found["first.weight"], expected)


def test_a_module_works_over_tasks(device):
    problem = odeopt.from_module(make_net(device), mse)
    x, y = torch.randn(3, 6, 3, device=device), torch.randn(3, 6, 2, device=device)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss))
    grid = odeopt.TimeGrid.from_lr(0.2, 3)
    many = opt.value_and_grad(problem.loss, tasks=True)(problem.params, (x, y), grid, (x, y))
    one = opt.value_and_grad(problem.loss)
    each = [one(problem.params, (x[i], y[i]), grid, (x[i], y[i])).value for i in range(3)]
    torch.testing.assert_close(many.values, torch.stack(each))


def test_keywords_reach_the_module(device):
    class Scaled(nn.Linear):
        def forward(self, x, factor=1.0):
            return factor * super().forward(x)

    net, batch = Scaled(3, 2).to(device), make_batch(device)
    problem = odeopt.from_module(net, lambda model, b: model(b[0], factor=2.0).sum())
    found = problem.loss(problem.params, batch)
    torch.testing.assert_close(found, net(batch[0], factor=2.0).sum())


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
