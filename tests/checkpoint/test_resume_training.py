"""Resuming where steps have batches, random numbers and buffers of their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt import Adam, Binomial, Disk, Every, GradientFlow, ODEOptimizer, StopWhen, Stream
from odeopt import TimeGrid as Grid
from tests.checkpoint.conftest import Crash

X = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(12, 4)
Y = torch.sin(3 * X.sum(1))


class Loss:
    """Least squares with dropout; raises after so many evaluations."""

    def __init__(self, limit, dropout):
        self.limit, self.calls, self.dropout = limit, 0, dropout

    def settings(self):
        return {"dropout": self.dropout}

    def __call__(self, params, batch):
        self.calls += 1
        if self.limit is not None and self.calls > self.limit:
            raise Crash
        x, y = batch
        x = torch.nn.functional.dropout(x, self.dropout)
        return (torch.tanh(x @ params) - y).square().mean()


def outer(params, batch):
    return (batch[0] @ params - batch[1]).square().mean()


def train(store, limit=None):
    opt = ODEOptimizer(Adam(Loss(limit, 0.3)), checkpoints=Binomial(4, store=store))
    stream = Stream.minibatches((X, Y), batch_size=4, seed=1, random_loss=True)
    call = opt.value_and_grad(outer)
    return call(torch.ones(4), stream, Grid.from_lr(0.05, 30), (X, Y))


def stop(store, limit=None):
    opt = ODEOptimizer(GradientFlow(Loss(limit, 0.0)), checkpoints=Every(3, store=store))
    event = StopWhen(lambda params, batch: outer(params, batch) - 5.5, (X, Y))
    call = opt.value_and_grad(outer, stop=event)
    found = call(torch.ones(4), (X, Y), Grid.from_lr(0.1, 30), (X, Y))
    assert 10 < found.diagnostics["stop_step"] < 30
    return found


@pytest.mark.slow
@pytest.mark.parametrize("solve", [train, stop])
@given(points=st.lists(st.integers(1, 150), min_size=1, max_size=3))
def test_it_goes_on(tmp_path, solve, points):
    expected = solve(Disk(tmp_path))
    store = Disk(tmp_path / "at", resume=True, seconds=0)
    for limit in (*points, None):
        try:
            found = solve(store, limit)
            break
        except Crash:
            assert limit is not None
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads.params, expected.grads.params)
    assert torch.equal(found.grads.dt, expected.grads.dt)
    assert found.stats.hvps == expected.stats.hvps
    assert list(tmp_path.iterdir()) == []
