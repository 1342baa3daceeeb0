"""Modules as losses."""

from __future__ import annotations

import torch
from support.module import is_head, make_batch, make_net, mse, outer, unrolled, with_grad
from torch import nn

import odeopt


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
