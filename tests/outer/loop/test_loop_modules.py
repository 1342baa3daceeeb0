"""Modules of many kinds in a recorded loop, and what it holds in memory."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import odeopt
from odeopt.testing import relative_error
from odeopt.tools import tree


class Tied(nn.Module):
    """A decoder that shares its weight with the encoder, and a part that is frozen."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 5), nn.Linear(5, 3)
        self.decode.weight = nn.Parameter(torch.randn(3, 5))
        self.decode.weight = self.mirror = nn.Parameter(self.decode.weight.detach())
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.scale * self.decode(torch.tanh(self.encode(x))) @ self.mirror


def energy(model, batch):
    return model(batch).square().mean()


@pytest.fixture
def tied(device):
    torch.manual_seed(2)
    return Tied().to(device)


def test_tied_and_frozen_parameters_are_torchs(tied, problem):
    twin = copy.deepcopy(tied)
    optimizer = torch.optim.Adam(tied.parameters(), 0.01, weight_decay=0.1)
    other = torch.optim.Adam(twin.parameters(), 0.01, weight_decay=0.1)
    with odeopt.RecordedLoop(tied, optimizer) as inner:
        for x, *_ in problem.batches:
            inner.step(energy, x)
            other.zero_grad()
            energy(twin, x).backward()
            other.step()
    inner.write_back()
    assert relative_error(list(tied.parameters()), list(twin.parameters())) < 1e-12
    assert tied.mirror is tied.decode.weight
    res = inner.backward(energy, problem.outer[0])
    assert tied.scale.grad is None  # it does not require grad, but its gradient is known
    assert res.grads.params["scale"].abs().sum() > 0


class Keeping(nn.Module):
    """A layer that keeps its last output."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        self.last = self.layer(x)
        return self.last


KEEPING = {
    "output": Keeping,
    "pruned weight": lambda: nn.utils.prune.l1_unstructured(nn.Linear(3, 1), "weight", 1),
}


@pytest.mark.parametrize("kind", KEEPING)
def test_a_module_that_keeps_what_it_computes_has_a_copy(kind, problem, device):
    model = KEEPING[kind]().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with odeopt.RecordedLoop(model, optimizer) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
        found = inner.model
    kept = found.last if kind == "output" else found.weight
    assert kept.is_leaf
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    twin = problem.mse(found, problem.outer)
    inner.write_back()
    assert relative_error(twin.detach(), problem.mse(model, problem.outer).detach()) < 1e-14


def test_no_grad_around_everything(problem, device):
    lr = torch.tensor(0.1, device=device, requires_grad=True)
    found = []
    for around in (torch.enable_grad, torch.no_grad):
        optimizer = torch.optim.SGD(problem.model.parameters(), lr)
        with around(), odeopt.RecordedLoop(problem.model, optimizer) as inner:
            for batch in problem.batches:
                inner.step(problem.mse, batch)
            inner.backward(problem.mse, problem.outer)
        found.append(lr.grad.clone())
        lr.grad = None
    assert torch.equal(*found)


def test_losses_that_take_other_arguments_are_named(problem):
    optimizer = torch.optim.SGD(problem.model.parameters())
    with odeopt.RecordedLoop(problem.model, optimizer) as inner:
        with pytest.raises(odeopt.InputError, match=r"loss cannot be called with \(model, batch\)"):
            inner.step(problem.weighted, problem.batches[0])
        assert inner.steps == 0
    with pytest.raises(odeopt.InputError, match=r"outer_loss cannot be called with \(model"):
        inner.backward(problem.weighted, problem.batches[0])


def test_a_loss_of_many_numbers_is_refused(problem):
    optimizer = torch.optim.SGD(problem.model.parameters())
    with (
        odeopt.RecordedLoop(problem.model, optimizer) as inner,
        pytest.raises(odeopt.InputError, match="objective returned shape"),
    ):
        inner.step(lambda model, batch: model(batch), problem.outer[0])


@pytest.fixture
def states(monkeypatch):
    """How many flat states are alive now and at most, by reference counts alone."""
    alive, most, flatten = set(), [0], tree._concatenate

    def watched(found):
        flat = flatten(found)
        if flat.numel() == 2001 and not torch._C._functorch.is_functorch_wrapped_tensor(flat):
            most.append(len(most))
            alive.add(most[-1])
            weakref.finalize(flat, alive.discard, most[-1])
            most[0] = max(most[0], len(alive))
        return flat

    monkeypatch.setattr(tree, "_concatenate", watched)
    gc.collect()
    gc.disable()
    yield most
    gc.enable()


@pytest.mark.parametrize("steps", [10, 60])
def test_the_loop_holds_one_state_and_the_backward_sweep_the_slots(device, states, steps):
    model = nn.Linear(40, 25, bias=False).to(device)  # with momenta and the last loss: 2001
    x = torch.randn(8, 40, device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    with odeopt.RecordedLoop(model, optimizer, checkpoints=odeopt.Binomial(4)) as inner:
        for _ in range(steps):
            inner.step(energy, x)
        assert states[0] == 2  # before and after a step
    states[0] = 0
    res = inner.value_and_grad(energy, x)
    assert res.stats.stored_states == 4
    assert states[0] <= 4 + 5  # the end of the loop and of the sweep, and three to work with
