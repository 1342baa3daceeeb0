"""Tied parameters, submodules in two places, and a module that stays as it was."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import odeopt
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree


class Twice(nn.Module):
    """One layer in two places, by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(3, 3), nn.Linear(3, 3)
        self.back.weight = self.into.weight

    def forward(self, x):
        return self.back(torch.tanh(self.into(x))).sum(-1, keepdim=True)


class Recurrent(nn.Module):
    """A layer that keeps a list of its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.RNN(3, 4, batch_first=True)
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.layer(x[:, None])[0][:, -1])


class Normed(nn.Module):
    """A layer whose weight is computed from others, in a list as well as under its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 1))
        self.also = [self.layer]

    def forward(self, x):
        return self.also[0](torch.tanh(x)) + self.layer(x)


MODULES = {
    "submodule in two places": Twice,
    "sequence of one layer": lambda: nn.Sequential(*[nn.Linear(3, 3)] * 3, nn.Linear(3, 1)),
    "tied": Tied,
    "recurrent": Recurrent,
    "parametrised": Normed,
}


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def data(device):
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(8, n, generator=generator).to(device) for n in (3, 1))


def make(kind, device):
    torch.manual_seed(0)
    return MODULES[kind]().to(device)


def by_torch(kind, device, lr=0.1, steps=4):
    """The module after torch's own loop."""
    model = make(kind, device)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        mse(model, data(device)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("kind", MODULES)
def test_from_module_moves_every_place(kind, device):
    model, batch = make(kind, device), data(device)
    parts = odeopt.from_module(model, mse)
    opt = odeopt.ODEOptimizer(odeopt.SGD(parts.loss, momentum=0.9))
    grid = odeopt.TimeGrid.from_lr(0.1, 4)
    sol = opt.solve(parts.params, batch, grid)
    expected = dict(by_torch(kind, device).named_parameters())
    assert (
        relative_error(sol.params, {name: expected[name].detach() for name in sol.params}) < 1e-13
    )
    start = tree.map_tensors(lambda x: x.clone().requires_grad_(), parts.params)
    end = unroll(odeopt.SGD(parts.loss, momentum=0.9), start, batch, grid.dt)
    grads = torch.autograd.grad(parts.evaluate(end, batch), tree.tensors(start))
    found = opt.value_and_grad(parts.evaluate)(parts.params, batch, grid, batch).grads.params
    assert relative_error(tree.tensors(found), list(grads)) < 1e-12


@pytest.mark.parametrize("kind", MODULES)
def test_a_recorded_loop_moves_every_place(kind, device):
    model, batch = make(kind, device), data(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with odeopt.RecordedLoop(model, optimizer) as inner:
        for _ in range(4):
            inner.step(mse, batch)
    res = inner.backward(mse, batch)
    expected = mse(by_torch(kind, device).eval(), batch)
    assert relative_error(res.value, expected.detach()) < 1e-13
    assert all(p.grad is not None for p in model.parameters())
    inner.write_back()
    assert relative_error(mse(model, batch).detach(), expected.detach()) < 1e-13


def identities(model):
    """Every tensor in every place, and what it holds."""
    return [
        (id(tensor), tensor.detach().clone(), type(tensor))
        for child in model.modules()
        for tensor in (*child._parameters.values(), *child._buffers.values())
        if tensor is not None
    ]


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_the_module_is_as_it_was(kind, raises, device):
    model, batch = make(kind, device), data(device)
    modes = [child.training for child in model.modules()]
    before = identities(model)
    calls = []

    def loss(model, batch):
        calls.append(1)
        if raises and len(calls) > 3:
            raise KeyboardInterrupt
        return mse(model, batch)

    parts = odeopt.from_module(model, loss)
    opt = odeopt.ODEOptimizer(odeopt.SGD(parts.loss))
    try:
        opt.value_and_grad(parts.evaluate)(
            parts.params, batch, odeopt.TimeGrid.from_lr(0.1, 4), batch
        )
    except KeyboardInterrupt:
        assert raises
    after = identities(model)
    assert [(i, kind) for i, _, kind in before] == [(i, kind) for i, _, kind in after]
    assert all(torch.equal(x, y) for (_, x, _), (_, y, _) in zip(before, after, strict=True))
    assert [child.training for child in model.modules()] == modes


def test_threads_that_share_a_module_take_turns(device):
    """Each has its own parameters in it while it is evaluated."""
    model, batch = make("submodule in two places", device), data(device)
    parts = odeopt.from_module(model, mse)
    opt = odeopt.ODEOptimizer(odeopt.SGD(parts.loss))
    grid = odeopt.TimeGrid.from_lr(0.1, 6)
    starts = [{name: leaf + 0.1 * i for name, leaf in parts.params.items()} for i in range(4)]

    def gradient(i):
        torch.set_default_dtype(torch.float64)
        return opt.value_and_grad(parts.evaluate)(starts[i], batch, grid, batch).grads.params

    expected, found = [gradient(i) for i in range(4)], {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, gradient(i))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert relative_error(found[i], expected[i]) == 0


@pytest.mark.parametrize("view", [lambda w: w, lambda w: w.T, lambda w: w[:2]])
def test_parameters_that_share_their_memory_are_refused(view, device):
    """Torch moves them as one; the inner loop would move each by itself."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(device)
    model[1].weight = nn.Parameter(view(model[0].weight.detach()))
    with pytest.raises(odeopt.InputError, match=r"'0\.weight' and '1\.weight' share their memory"):
        odeopt.from_module(model, mse)
    with pytest.raises(odeopt.InputError, match=r"Use one nn\.Parameter in both places"):
        odeopt.RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1))


def test_empty_parameters_share_nothing(device):
    model = nn.Linear(3, 1).to(device)
    model.a, model.b = (nn.Parameter(torch.ones(0, device=device)) for _ in "ab")
    assert sorted(odeopt.from_module(model, mse).params) == ["a", "b", "bias", "weight"]


def test_a_lazy_module_says_what_to_do(device):
    model = nn.Sequential(nn.LazyLinear(3), nn.Tanh())
    with pytest.raises(odeopt.InputError, match=r"'0.weight' has no shape yet.*call the module"):
        odeopt.from_module(model, mse)
    with pytest.raises(odeopt.InputError, match="call the module once"):
        odeopt.RecordedLoop(model, torch.optim.SGD([torch.zeros(1)], 0.1))
    model.to(device)(data(device)[0])
    assert sorted(odeopt.from_module(model, mse).params) == ["0.bias", "0.weight"]


def test_a_scripted_part_is_refused_by_name():
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 1)))
    with pytest.raises(odeopt.CompatibilityError, match="module Linear of TorchScript"):
        odeopt.from_module(model, mse)
