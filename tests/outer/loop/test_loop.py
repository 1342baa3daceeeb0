"""A recorded loop is torch's own, and its gradient that of the unrolled loop."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.updates import UPDATES
from torch import nn

import odeopt
from odeopt.testing import relative_error

OPTIMIZERS = {
    "SGD": {},
    "SGD momentum": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.02},
    "SGD nesterov": {"momentum": 0.9, "nesterov": True},
    "Adam": {"weight_decay": 0.1, "eps": 1e-5},
    "Adam amsgrad": {"amsgrad": True, "betas": (0.8, 0.9)},
    "AdamW": {"weight_decay": 0.3},
    "RMSprop": {"alpha": 0.9, "eps": 1e-3},
    "RMSprop centered": {"centered": True, "momentum": 0.5, "eps": 1e-3, "weight_decay": 0.1},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.05, "weight_decay": 0.1},
    "NAdam": {"momentum_decay": 0.1, "weight_decay": 0.1, "eps": 1e-4},
    "NAdam decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.3, "betas": (0.8, 0.9)},
    "RAdam": {"betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-4},
    "RAdam decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.3, "betas": (0.8, 0.9)},
    "Adamax": {"betas": (0.8, 0.9), "weight_decay": 0.1, "eps": 1e-3},
    "Adadelta": {"rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    "ASGD": {"lambd": 0.1, "alpha": 0.6, "t0": 2, "weight_decay": 0.1},
    "Rprop": {"etas": (0.4, 1.3), "step_sizes": (1e-3, 0.06)},
    **{f"{name} uphill": {"maximize": True} for name in UPDATES},
}
FEW = settings(max_examples=max(2, settings.default.max_examples // 10))
"""Of each optimiser."""
SCHEDULES = [None, odeopt.Every(3), odeopt.Binomial(2)]


def make(name, parameters, lr=0.05):
    kind = name.split()[0]
    return getattr(torch.optim, kind)(parameters, lr=lr, **OPTIMIZERS[name])


def leaf(*shape, device=None):
    return torch.randn(shape, device=device).mul_(0.1).requires_grad_()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@FEW
@given(seed=st.integers(0, 20), steps=st.integers(4, 6))
def test_the_steps_are_those_of_torch(problem, name, seed, steps):
    torch.manual_seed(seed)
    model = copy.deepcopy(problem.model)
    own = copy.deepcopy(model)
    optimizer = make(name, own.parameters())
    with odeopt.RecordedLoop(model, make(name, model.parameters())) as inner:
        for batch in problem.batches[:steps]:
            optimizer.zero_grad()
            value = problem.mse(own, batch)
            value.backward()
            optimizer.step()
            assert inner.step(problem.mse, batch) == pytest.approx(value.item(), rel=1e-12)
    assert inner.steps == steps
    assert relative_error(list(inner.model.parameters()), list(own.parameters())) < 1e-12
    assert relative_error(list(model.parameters()), list(problem.model.parameters())) == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@FEW
@given(checkpoints=st.sampled_from(SCHEDULES), frozen=st.booleans())
def test_gradients_of_everything(problem, device, name, checkpoints, frozen):
    model, steps = copy.deepcopy(problem.model), len(problem.batches)
    hparams = {"weights": leaf(8, device=device), "decay": torch.tensor(0.01, device=device)}
    hparams["decay"].requires_grad_()
    rates = torch.linspace(0.05, 0.02, steps).requires_grad_()
    moved = [own for own, _ in model.named_parameters() if not frozen or own.startswith("2")]
    table = [
        (problem.weighted, (batch, hparams), dict.fromkeys(moved, (lr, OPTIMIZERS[name])))
        for batch, lr in zip(problem.batches, rates, strict=True)
    ]
    values, _, _ = problem.unroll(model, name.split()[0], table)
    final = torch.func.functional_call(model, values, (problem.outer[0],))[..., 0]
    value = (final - problem.outer[1]).square().mean() + hparams["decay"]
    inputs = [*model.parameters(), *hparams.values(), rates]
    expected = torch.autograd.grad(value, inputs)

    optimizer = make(name, [dict(model.named_parameters())[own] for own in moved])
    with odeopt.RecordedLoop(model, optimizer, hparams, checkpoints=checkpoints) as inner:
        for batch, lr in zip(problem.batches, rates, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            inner.step(problem.weighted, batch)
    res = inner.backward(
        lambda model, batch, hparams: problem.mse(model, batch) + hparams["decay"], problem.outer
    )
    assert abs(res.value - value.detach()) < 1e-12
    assert relative_error([own.grad for own in inputs], list(expected)) < 1e-10
    assert relative_error(list(res.grads.params.values()), list(expected[:4])) < 1e-10
    assert relative_error(res.grads.lr[:, 0], expected[-1]) < 1e-10


GROUPED = ("Adam", "AdamW", "RMSprop centered", "NAdam", "RAdam decoupled", "Adagrad", "ASGD")


@pytest.mark.parametrize("name", ["SGD momentum", *GROUPED])
def test_groups_schedules_and_learned_options(problem, device, name):
    model = copy.deepcopy(problem.model)
    decay = torch.tensor(0.1, device=device, requires_grad=True)
    kind = name.split()[0]
    parameters = dict(model.named_parameters())
    body, head = list(parameters)[:2], list(parameters)[2:]
    groups = [
        {"params": [parameters[own] for own in body], "weight_decay": decay},
        {"params": [parameters[own] for own in head], "lr": 0.02},
    ]
    optimizer = getattr(torch.optim, kind)(groups, lr=0.05, **OPTIMIZERS[name])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    rates, table = [], []
    with odeopt.RecordedLoop(model, optimizer, checkpoints=odeopt.Binomial(2)) as inner:
        for batch in problem.batches:
            rates.append([group["lr"] for group in optimizer.param_groups])
            inner.step(problem.mse, batch)
            schedule.step()
    rates = torch.tensor(rates, requires_grad=True)
    for batch, (one, two) in zip(problem.batches, rates, strict=True):
        options = OPTIMIZERS[name]
        chosen = dict.fromkeys(body, (one, {**options, "weight_decay": decay}))
        chosen |= dict.fromkeys(head, (two, options))
        table.append((problem.mse, (batch,), chosen))
    values, _, _ = problem.unroll(model, kind, table)
    final = torch.func.functional_call(model, values, (problem.outer[0],))[..., 0]
    inputs = [*model.parameters(), decay, rates]
    expected = torch.autograd.grad((final - problem.outer[1]).square().mean(), inputs)
    res = inner.backward(problem.mse, problem.outer)
    found = [*(own.grad for own in model.parameters()), decay.grad, res.grads.lr]
    assert relative_error(found, list(expected)) < 1e-10
    assert relative_error(list(res.grads.options), [expected[-2]]) < 1e-10


@given(drop=st.sampled_from([0.0, 0.4]), checkpoints=st.sampled_from(SCHEDULES))
def test_dropout_and_batch_normalisation(problem, device, drop, checkpoints):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(drop), nn.Linear(4, 1)
    ).to(device)
    before = {name: own.clone() for name, own in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    own = {"momentum": 0.5}
    table = [(problem.mse, (batch,), dict.fromkeys(names, (0.1, own))) for batch in problem.batches]
    values, buffers, _ = problem.unroll(model, "SGD", table, seed=3)
    twin = copy.deepcopy(model).eval()
    final = torch.func.functional_call(twin, {**values, **buffers}, (problem.outer[0],))[..., 0]
    value = (final - problem.outer[1]).square().mean()
    expected = torch.autograd.grad(value, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **own)
    with odeopt.RecordedLoop(model, optimizer, checkpoints=checkpoints, seed=3) as inner:
        for batch in problem.batches:
            inner.step(problem.mse, batch)
    res = inner.backward(problem.mse, problem.outer)
    assert abs(res.value - value.detach()) < 1e-12
    assert relative_error([p.grad for p in model.parameters()], list(expected)) < 1e-10
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items())
    inner.write_back()
    assert relative_error(model[1].running_var, buffers["1.running_var"]) < 1e-12


def test_learned_data_as_leaves_of_the_batch(problem, device):
    x, y = leaf(4, 3, device=device), leaf(4, device=device)
    names = [name for name, _ in problem.model.named_parameters()]
    table = [(problem.mse, ((x, y),), dict.fromkeys(names, (0.1, {})))] * 3
    values, _, _ = problem.unroll(problem.model, "SGD", table)
    final = torch.func.functional_call(problem.model, values, (problem.outer[0],))[..., 0]
    expected = torch.autograd.grad((final - problem.outer[1]).square().mean(), [x, y])
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with odeopt.RecordedLoop(problem.model, optimizer) as inner:
        for _ in range(3):
            inner.step(problem.mse, (x, y))
    res = inner.backward(problem.mse, problem.outer)
    assert relative_error([x.grad, y.grad], list(expected)) < 1e-10
    assert relative_error(list(res.grads.batch), list(expected)) < 1e-10


def test_gradients_flow_to_what_hparams_and_rates_were_computed_from(problem, device):
    eta = torch.tensor(-3.0, device=device, requires_grad=True)
    hparams = {"weights": eta * torch.ones(8, device=device), "decay": eta.exp()}
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    with odeopt.RecordedLoop(problem.model, optimizer, hparams) as inner:
        for batch in problem.batches:
            optimizer.param_groups[0]["lr"] = eta.exp()
            inner.step(problem.weighted, batch)
    res = inner.backward(lambda model, batch, hparams: problem.mse(model, batch), problem.outer)
    hand = res.grads.hparams["weights"].sum() + eta.detach().exp() * (
        res.grads.hparams["decay"] + res.grads.lr.sum().to(device)
    )
    assert relative_error(eta.grad, hand) < 1e-12
