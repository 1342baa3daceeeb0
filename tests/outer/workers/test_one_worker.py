"""One process is one worker; what `spread` refuses; how tasks are divided and compared."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import distributed as cases

import odeopt
from odeopt.engine.stats import Stats
from odeopt.outer.workers import Share
from odeopt.outer.workers.agreement import Failure, shorten, texts
from odeopt.outer.workers.merging import Part, _compute, _Head, _Own, merge


def loss(params, batch):
    return (params - batch).square().sum()


def test_one_process_is_one_worker(tmp_path):
    with odeopt.Workers() as workers:
        assert (workers.rank, workers.count) == (0, 1)
        found = cases.numbers(cases.CASES["uneven"](lambda call: odeopt.spread(call, workers)))
        learner = cases.learner(workers=workers, folder=tmp_path / "one")
        learner.fit(3)
    assert str(found) == str(cases.numbers(cases.CASES["uneven"](cases.plain)))
    plain = cases.learner(folder=tmp_path / "plain")
    plain.fit(3)
    assert str(cases.learned(learner)) == str(cases.learned(plain))
    assert all(torch.equal(learner.params[name], plain.params[name]) for name in plain.params)


def test_what_cannot_be_spread_is_refused():
    opt, workers = odeopt.ODEOptimizer(odeopt.GradientFlow(loss)), odeopt.Workers()
    tuned = odeopt.from_tolerance(odeopt.GradientFlow(loss), 1e-2)
    for call, message in [
        (opt.value_and_grad(loss), "tasks=False"),
        (opt.value_and_grad(loss, tasks=True, estimate_error=True), "estimate_error=True"),
        (tuned.value_and_grad(loss, tasks=True), "chooses its steps by the tasks"),
        (loss, "spread got a function"),
    ]:
        with pytest.raises(odeopt.CompatibilityError, match=message):
            odeopt.spread(call, workers)


@given(tasks=st.integers(0, 40), workers=st.integers(1, 9))
def test_tasks_are_divided_evenly_and_in_order(tasks, workers):
    shares = [Share.of(rank, workers, tasks) for rank in range(workers)]
    assert [n for share in shares for n in range(share.first, share.stop)] == list(range(tasks))
    sizes = [share.tasks for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def mark(*tensors):
    return shorten(texts({"all": tensors}))


@given(st.data())
def test_a_digest_notices_one_bit_and_a_swap(data):
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    dtype = data.draw(st.sampled_from(kinds))
    x = torch.randint(0, 2, (7, 3)).to(dtype)
    x[2, 1] = 0
    y = x.clone()
    y[2, 1] = 1
    assert mark(x) == mark(x.mT.contiguous().mT)
    assert mark(x) != mark(y)
    assert mark(x, y) != mark(y, x)


def test_a_digest_notices_places_signs_and_nan():
    x = torch.arange(5000, dtype=torch.float64)
    swapped = x.clone()
    swapped[[1, 4097]] = swapped[[4097, 1]]
    assert mark(x) != mark(swapped)
    assert mark(torch.ones(0), x) != mark(x)
    assert mark(torch.zeros(3)) != mark(-torch.zeros(3))
    assert mark(torch.full((3,), torch.nan)) == mark(torch.full((3,), torch.nan))
    assert mark(torch.ones(2, dtype=torch.complex64)) != mark(torch.ones(2))
    assert mark(torch.ones(1, 9).expand(3, 9)[:, 4]) == mark(torch.ones(3))


class TwoWorkers:
    """Worker 0 of two that have a task each, of which the other's has failed."""

    rank, count = 0, 2

    def gather(self, what, make):
        failure = Failure.of(odeopt.DivergenceError("the state is not finite"))
        return [make(), _Head(failure=failure)]


def test_the_worker_that_failed_is_named():
    def compute(share):
        error = odeopt.InputError("of its own")
        error.all_failed = "all"
        raise error

    for tasks, kind, message in [
        (0, odeopt.DivergenceError, "worker 1 failed: the state is not finite"),
        (2, odeopt.InputError, "of its own"),
    ]:
        with pytest.raises(kind, match=message):
            merge(TwoWorkers(), "a sum", tasks, compute, torch.device("cpu"))


def test_what_is_told_before_the_numbers_is_small_however_large_they_are():
    rows = {"status": torch.zeros(4, dtype=torch.int64), "batch": torch.ones(4, 50_000)}

    def compute(share):
        return Part({"params": torch.ones(50_000)}, rows, Stats())

    head = _compute(Share.of(0, 1, 4), 0, compute, _Own())
    assert len(pickle.dumps(head)) < 5_000
