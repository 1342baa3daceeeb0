"""The graphs of a loop's steps are pulled, not made again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odeopt
from odeopt import Every, Graphs, RecordedLoop
from odeopt.tools import tree
from odeopt.tools.autodiff import depends_on_others

MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
}


def make_model(*parts):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *parts, nn.Linear(4, 2)).double()


def mse(model, batch, *hparams):
    error = (model(batch[0]) - batch[1]).square()
    if len(batch) > 2:
        error = error * batch[2][:, None]
    return error.mean() * (hparams[0]["scale"] if hparams else 1.0)


def batches(count):
    generator = torch.Generator().manual_seed(2)
    return [
        tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))
        for _ in range(count)
    ]


def run(name, checkpoints, parts=(), steps=6, weigh=(), frozen=False, scale=None):
    """A loop with batches of its own, rates that fall, and weights of examples in some batches."""
    model = make_model(*parts)
    moved = list(model.parameters())[2 if frozen else 0 :]
    optimizer = MAKE[name](moved)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    hparams = None if scale is None else {"scale": torch.tensor(scale, requires_grad=True)}
    *data, outer = batches(steps + 1)
    with RecordedLoop(model, optimizer, hparams, checkpoints=checkpoints, seed=3) as inner:
        for k, batch in enumerate(data):
            ones = torch.ones(6, dtype=torch.float64, requires_grad=True)
            inner.step(mse, (*batch, ones) if k in weigh else batch)
            schedule.step()
    return inner.value_and_grad(mse, outer)


def numbers(res):
    return [res.value, *tree.tensors(vars(res.grads))]


def same(found, expected):
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    assert len(pairs) > 5
    return all(torch.equal(a, b) for a, b in pairs)


CASES = {
    "plain": {},
    "weights of examples, the second time more": {"weigh": (1, 4)},
    "frozen parameters": {"frozen": True},
    "hparams": {"scale": 0.7},
    "dropout": {"parts": (nn.Dropout(0.5),)},
    "batch norm": {"parts": (nn.BatchNorm1d(4),)},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MAKE)
def test_the_same_bits_as_from_states(name, case):
    expected = run(name, Every(1), **CASES[case])
    found = run(name, None, **CASES[case])
    assert same(found, expected)
    assert found.stats.recorded_steps == 6
    assert found.stats.gradient_evaluations == 0
    assert expected.stats.recorded_steps == 0
    assert expected.stats.gradient_evaluations == 6


@pytest.mark.parametrize("budget", [0, 2_000, 8_000, 20_000, 10**7])
def test_where_memory_is_short_the_last_steps_are_kept(budget):
    found = run("adam", Graphs(budget=budget), weigh=(2,))
    assert same(found, run("adam", Every(1), weigh=(2,)))
    assert found.stats.recorded_steps == 6 or budget < 10**7
    assert found.stats.recorded_steps == 0 or budget > 0


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        return mse(model, batch)


def test_a_step_evaluates_its_loss_once():
    model, loss, (*data, outer) = make_model(), Counting(), batches(6)
    counts = []
    for _ in range(2):
        loss.calls = 0
        with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1)) as inner:
            for batch in data:
                inner.step(loss, batch)
        inner.backward(mse, outer)
        counts.append(loss.calls)
    assert counts[1] == 5
    assert counts[0] <= 5 + 3  # a new loss is looked at closely


def test_a_loop_can_be_pulled_more_than_once():
    model, (*data, outer) = make_model(), batches(4)
    with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1)) as inner:
        for batch in data:
            inner.step(mse, batch)
        first = inner.value_and_grad(mse, outer)
        inner.step(mse, data[0])
        inner.value_and_grad(mse, outer)
    with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1)) as again:
        for batch in data:
            again.step(mse, batch)
    assert same(again.value_and_grad(mse, outer), first)


def test_memory_that_changes_behind_a_batch_is_noticed():
    model, array = make_model(), torch.ones(6, 3, dtype=torch.float64).numpy()
    target = torch.ones(6, 2, dtype=torch.float64)
    with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1)) as inner:
        for value in (1.0, 2.0):
            array[:] = value
            inner.step(mse, (torch.from_numpy(array), target))
    with pytest.raises(odeopt.NondeterminismError, match=r"batch of step 0 .* changed in place"):
        inner.backward(mse, (torch.from_numpy(array), target))


def test_states_are_compared_as_ever():
    model, (first, outer) = make_model(), batches(2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with RecordedLoop(model, optimizer, checkpoints=Every(1)) as inner:
        inner.step(mse, first)
    first[0].mul_(2)
    with pytest.raises(odeopt.NondeterminismError, match="lead to other parameters"):
        inner.backward(mse, outer)


def test_hparams_that_change_are_noticed():
    model, (*data, outer) = make_model(), batches(3)
    hparams = {"scale": torch.tensor(2.0, requires_grad=True)}
    with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1), hparams) as inner:
        for batch in data:
            inner.step(mse, batch)
    with torch.no_grad():
        hparams["scale"].mul_(2)
    with pytest.raises(odeopt.NondeterminismError, match="changed in place"):
        inner.backward(mse, outer)


def test_what_a_later_loss_captures_is_noticed():
    """A loss of the same code was looked at before, and captured nothing."""
    model, (batch, _) = make_model(), batches(2)
    with RecordedLoop(model, torch.optim.SGD(model.parameters(), 0.1)) as inner:
        for grad in (False, True):
            eta = torch.ones((), requires_grad=grad)
            for captured in (eta, 2 * eta):
                loss = lambda model, batch, c=captured: c * mse(model, batch)  # noqa: E731
                if not grad:
                    inner.step(loss, batch)
                    continue
                with pytest.raises(odeopt.CapturedTensorError, match="not one of its arguments"):
                    inner.step(loss, batch)
    assert inner.steps == 2


def test_a_loss_with_a_transform_inside():
    model, (*data, outer) = make_model(), batches(3)

    def loss(model, batch):
        slope = torch.func.grad(lambda x: (x**3).sum())(model[0].weight)
        return mse(model, batch) + 1e-3 * slope.square().sum()

    results = []
    for checkpoints in (None, Every(1)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with RecordedLoop(model, optimizer, checkpoints=checkpoints) as inner:
            for batch in data:
                inner.step(loss, batch)
        results.append(inner.value_and_grad(mse, outer))
    assert same(*results)
    assert results[0].stats.recorded_steps == 0


def test_what_values_depend_on():
    x, y = (torch.ones(2, requires_grad=True) for _ in "xy")
    assert not depends_on_others([(2 * x).sum(), torch.ones(1)], [x])
    assert not depends_on_others([x], [x])
    assert depends_on_others([y], [x])
    assert depends_on_others([(x * y).sum()], [x])
    assert depends_on_others([x.sum(), (x * (2 * y)).sum()], [x])
    assert not depends_on_others([(x * y.detach()).sum()], [x])
