"""Threads that solve at the same time: each gets its own numbers, or an error."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch

import odeopt
from odeopt.testing import relative_error

COUNT = 4


@pytest.fixture(autouse=True)
def _often():
    """Threads take turns often, so that what can get in between does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(work, count=COUNT):
    """What `work(i)` gives in threads that run at the same time; errors as they are."""
    found, barrier = {}, threading.Barrier(count)

    def run(i):
        barrier.wait()
        try:
            found[i] = work(i)
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(count)]


class Data:
    def __init__(self, device) -> None:
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(shape, generator=generator).to(device)  # noqa: E731
        self.params = {"w": draw(2, 4), "v": draw(4)}
        self.batch, self.outer = (draw(12, 2), draw(12)), (draw(8, 2), draw(8))
        self.grid = odeopt.TimeGrid.from_lr(0.05, 8)


def plain(params, batch):
    return (torch.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]).square().mean()


def dropping(params, batch):
    hidden = torch.nn.functional.dropout(torch.tanh(batch[0] @ params["w"]), 0.5)
    return (hidden @ params["v"] - batch[1]).square().mean()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("rule", [odeopt.SGD, odeopt.GradientFlow])
def test_random_numbers_of_each_solve_are_its_own(rule, shared, device):
    data, one = Data(device), odeopt.ODEOptimizer(rule(dropping))

    def gradient(i):
        opt = one if shared else odeopt.ODEOptimizer(rule(dropping))
        stream = odeopt.Stream.constant(data.batch, seed=i)
        return opt.value_and_grad(plain)(data.params, stream, data.grid, data.outer).grads.params

    expected = [gradient(i) for i in range(COUNT)]
    torch.manual_seed(3)
    after = torch.rand(3)
    torch.manual_seed(3)
    found = together(gradient)
    assert torch.equal(torch.rand(3), after)
    assert [relative_error(a, b) for a, b in zip(found, expected, strict=True)] == [0] * COUNT
    assert relative_error(expected[1], expected[0]) > 1e-3


def test_loops_in_threads_record_their_own_random_numbers(device):
    data = Data(device)
    mse = lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square().mean()  # noqa: E731
    models = [
        torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        ).to(device)
        for _ in range(COUNT)
    ]

    def gradient(i):
        optimizer = torch.optim.SGD(models[i].parameters(), 0.05)
        with odeopt.RecordedLoop(models[i], optimizer, seed=i) as inner:
            for _ in range(5):
                inner.step(mse, data.batch)
        return inner.value_and_grad(mse, data.outer).grads.params

    expected = [gradient(i) for i in range(COUNT)]
    found = together(gradient)
    assert [relative_error(a, b) for a, b in zip(found, expected, strict=True)] == [0] * COUNT


def test_a_thread_that_draws_random_numbers_is_noticed_or_does_no_harm(device):
    """Torch's generator belongs to the process: a number that another thread takes is missing."""
    data, done = Data(device), threading.Event()
    opt = odeopt.ODEOptimizer(odeopt.SGD(dropping), checkpoints=odeopt.Every(1))
    stream = odeopt.Stream.constant(data.batch, seed=0)

    def gradient():
        return opt.value_and_grad(plain)(data.params, stream, data.grid, data.outer).grads.params

    def draw():
        while not done.is_set():
            torch.rand(1)

    expected = gradient()
    other = threading.Thread(target=draw)
    other.start()
    noticed = 0
    try:
        for _ in range(20):
            try:
                assert relative_error(gradient(), expected) == 0
            except odeopt.NondeterminismError:
                noticed += 1
    finally:
        done.set()
        other.join()
    assert noticed > 0


def test_a_stream_may_be_shared(device):
    data = torch.arange(40, device=device)
    stream = odeopt.Stream.minibatches(data, batch_size=4, seed=1)
    expected = [stream(k) for k in range(60)]

    def look(i):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(i)).tolist()
        return all(torch.equal(stream(k), expected[k]) for _ in range(5) for k in order)

    assert together(look) == [True] * COUNT


def test_kernels_are_traced_by_turns(device):
    """One optimiser, four threads, no warning, and Python's filters as they were."""
    data, opt = Data(device), odeopt.ODEOptimizer(odeopt.Adam(plain), compile="trace")
    before = list(warnings.filters)

    def gradient(i):
        batch = tuple(leaf[: 12 - i % 2] for leaf in data.batch)
        return opt.value_and_grad(plain)(data.params, batch, data.grid, data.outer).grads.params

    found = together(gradient)
    assert list(warnings.filters) == before
    eager = odeopt.ODEOptimizer(odeopt.Adam(plain))
    for i, own in enumerate(found):
        batch = tuple(leaf[: 12 - i % 2] for leaf in data.batch)
        expected = eager.value_and_grad(plain)(data.params, batch, data.grid, data.outer)
        assert relative_error(own, expected.grads.params) < 1e-13
