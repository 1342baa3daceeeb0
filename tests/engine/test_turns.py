"""Tasks one after the other: which are, and that it makes no difference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tasks import ALL, GRIDS, TASKS, assert_close, inner, optimizer, outer, problem

import odeopt
from odeopt import Adam, Binomial, ODEOptimizer, Stream, TimeGrid
from odeopt.engine import turns

RULES = {
    "adam": lambda: ODEOptimizer(Adam(inner, eps=0.1)),
    "sgd, replayed": lambda: ODEOptimizer(odeopt.SGD(inner, momentum=0.9), checkpoints=Binomial(2)),
    "stabilized": lambda: ODEOptimizer(odeopt.GradientFlow(inner), odeopt.StabilizedRK()),
}


def solved(name, grid, few, monkeypatch, **how):
    monkeypatch.setattr(turns, "FEW", few)
    params, batch, outer_batch, hparams = problem("cpu")
    opt = RULES[name]() if name in RULES else optimizer(name)
    return opt.value_and_grad(outer, tasks=True, **how)(params, batch, grid, outer_batch, hparams)


@given(st.sampled_from([*ALL, *RULES]), st.sampled_from([*GRIDS]), st.integers(0, 99))
def test_the_gradient_is_that_of_all_at_once(name, grid, seed):
    assume(grid == "common" or name not in RULES)  # a rate of zero is a step for a rule
    with pytest.MonkeyPatch.context() as monkeypatch:
        results = []
        for few in (TASKS, 0):
            torch.manual_seed(seed)
            results.append(solved(name, GRIDS[grid]("cpu"), few, monkeypatch))
        in_turn, together = results
    assert_close(in_turn.values, together.values)
    assert_close(in_turn.grads.params, together.grads.params, 1e-9)
    assert_close(in_turn.grads.hparams, together.grads.hparams, 1e-9)
    assert_close(in_turn.grads.dt, together.grads.dt, 1e-9)
    assert in_turn.stats.hvps == together.stats.hvps
    assert in_turn.stats.replayed_steps == together.stats.replayed_steps


def test_a_task_that_fails_is_left_out(monkeypatch):
    params, (x, y), outer_batch, hparams = problem("cpu")
    x[1] = torch.nan
    call = RULES["adam"]().value_and_grad(outer, tasks=True, on_failure="skip")
    res = call(params, (x, y), TimeGrid.from_lr(0.1, 5), outer_batch, hparams)
    monkeypatch.setattr(turns, "FEW", 0)
    expected = call(params, (x, y), TimeGrid.from_lr(0.1, 5), outer_batch, hparams)
    assert torch.equal(res.status, expected.status)
    assert_close(res.grads.params, expected.grads.params, 1e-9)


@pytest.mark.parametrize(("size", "tasks", "seed", "expected"), [
    (10, 4, None, True), (10, 5, None, False), (2**15, 50, None, True),
    (2**15 - 1, 50, None, False), (10, 4, 3, False),
])  # fmt: skip
def test_few_or_large_ones_take_turns(size, tasks, seed, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "odeopt.engine.run.takes_turns", lambda own: seen.append(turns.takes_turns(own))
    )
    batch = torch.zeros(tasks, 1)
    stream = Stream.constant(batch, seed=seed)
    opt = ODEOptimizer(odeopt.GradientFlow(lambda params, batch: params.square().sum()))
    opt.solve(torch.zeros(size), stream, TimeGrid.from_lr(0.1, 1), tasks=True)
    assert seen == [expected]


def test_compiled_kernels_hold_all_tasks():
    params, batch, outer_batch, hparams = problem("cpu")
    opt = ODEOptimizer(Adam(inner, eps=0.1), compile="trace")
    call, grid = opt.value_and_grad(outer, tasks=True), TimeGrid.from_lr(0.1, 5)
    res = call(params, batch, grid, outer_batch, hparams)
    assert res.stats.recorded_steps == 0
    assert res.stats.compile_misses > 0
    expected = RULES["adam"]().value_and_grad(outer, tasks=True)
    assert_close(
        res.grads.params, expected(params, batch, grid, outer_batch, hparams).grads.params, 1e-9
    )
