"""Calls that a function compiled with torch.compile makes run as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odeopt

pytestmark = pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"
)
"""By torch.compile, of tensors that it looks at where a graph breaks."""

GRID = odeopt.TimeGrid.from_lr(0.1, 3)


def square(params, batch):
    return (params - batch).square().sum()


def compiled(function):
    """With the graphs that were compiled, none of which may hold a step of a solve."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    return torch.compile(function, backend=keep), graphs


def test_a_compiled_function_may_solve(device):
    opt, x = odeopt.ODEOptimizer(odeopt.GradientFlow(square)), torch.ones(2, device=device)
    call, graphs = compiled(lambda p: 2 * opt.solve(p.exp(), x, GRID).params.sum())
    p = torch.zeros(2, device=device, requires_grad=True)
    found = torch.autograd.grad(call(p), p)[0]
    torch.testing.assert_close(found, torch.full_like(p, 2 * 0.8**3))
    assert "exp" in graphs[0]
    assert "sub" not in "".join(graphs)


def test_a_compiled_function_may_differentiate(device):
    call = odeopt.ODEOptimizer(odeopt.GradientFlow(square)).value_and_grad(square)
    x = torch.ones(2, device=device)
    function, graphs = compiled(lambda p: call(p.exp(), x, GRID, 0 * x).grads.params.cos())
    expected = call(torch.ones(2, device=device), x, GRID, 0 * x).grads.params.cos()
    assert torch.equal(function(torch.zeros(2, device=device)), expected)
    assert "sub" not in "".join(graphs)


def test_a_compiled_function_may_record_steps(device):
    def objective(model, batch):
        return (model(batch) - batch).square().mean()

    def train(inner, batch):
        inner.step(objective, batch.tanh())
        return inner.value_and_grad(objective, batch).grads.params["weight"].cos()

    def loop():
        torch.manual_seed(0)
        model = nn.Linear(2, 2).to(device)
        return odeopt.RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1))

    batch = torch.ones(3, 2, device=device)
    expected = train(loop(), batch)
    assert torch.equal(torch.compile(train, backend="eager")(loop(), batch), expected)
