"""Placement without knowing the length, against the optimum for a known one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odeopt import Adaptive, Binomial, GradientFlow, ODEOptimizer, Online, TimeGrid
from odeopt.checkpoint.base import Advance, Free, Progress, Pull, Restore, Store
from odeopt.checkpoint.binomial import optimal_advances, optimal_replays
from odeopt.testing import check_schedule

SLOTS = (1, 2, 3, 4, 5, 7, 10, 16, 32, 64)


def sweep_forward(slots, steps):
    """What is kept before each step, and how often a state was stored."""
    schedule, kept, stores, before = Online(slots), [], 0, {}
    stream = schedule.forward(None)
    action = next(stream)
    while len(before) < steps:
        match action:
            case Store(index):
                kept, stores = [*kept, index], stores + 1
                assert len(kept) <= slots
            case Free(index):
                kept = [other for other in kept if other != index]
            case Advance(start, stop):
                assert stop == start + 1
                before[stop] = kept
        action = stream.send(Progress(torch.tensor(0.0), torch.zeros(1)))
    return before, stores


def count_replays(slots, kept, steps):
    """Advances of the backward sweep, which must stay within its slots."""
    held, at, replays, next_pull = set(kept), steps - 1, 0, steps - 1
    for action in Online(slots).backward(steps, kept):
        match action:
            case Store(index):
                assert index == at
                held.add(index)
                assert len(held) <= slots
            case Free(index):
                held.remove(index)
            case Restore(index):
                assert index in held
                at = index
            case Advance(start, stop):
                assert start == at
                at, replays = stop, replays + stop - start
            case Pull(start, stop):
                assert (start, stop) == (next_pull, next_pull + 1)
                assert at == start
                next_pull -= 1
    assert not held
    assert next_pull == -1
    return replays


def ratios(slots, steps, every):
    before, _ = sweep_forward(slots, steps)
    for n in range(slots + 1, steps, every):
        made = n - 1 + count_replays(slots, before[n], n)
        yield made / optimal_advances(n, slots)


@pytest.mark.parametrize("slots", SLOTS)
def test_it_makes_little_more_steps_than_if_it_knew_the_length(slots):
    """Of the optimum: at most 1.28, on average 1.05; with ten slots and more at most 1.10."""
    found = list(ratios(slots, 600, 7)) + list(ratios(slots, slots + 60, 1))
    assert min(found) >= 1
    assert max(found) <= (1.28 if slots < 10 else 1.10)
    assert sum(found) / len(found) <= 1.05


@pytest.mark.parametrize("slots", [2, 5, 20])
def test_it_stores_seldom(slots):
    """About 8 s log(n / s) times: what that costs on disk."""
    for steps in (500, 4000):
        _, stores = sweep_forward(slots, steps)
        assert stores <= slots + 8 * slots * torch.tensor(steps / slots).log()


@pytest.mark.parametrize("slots", SLOTS)
def test_while_there_are_slots_every_state_is_kept(slots):
    before, _ = sweep_forward(slots, slots)
    assert before[slots] == list(range(slots))
    assert count_replays(slots, before[slots], slots) == 0


@given(st.integers(1, 12), st.integers(1, 200))
def test_it_reverses_each_step_once_within_its_slots(slots, steps):
    before, _ = sweep_forward(slots, steps)
    assert count_replays(slots, before[steps], steps) >= optimal_replays(steps, slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_it_passes_the_conformance_suite(slots):
    check_schedule(Online(slots))


def quartic(params, batch):
    return (batch * params.square()).sum() / 2 + params.pow(4).sum() / 4


def outer(params, batch):
    return (params - batch).square().sum()


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2, 5, 100])
def test_an_adaptive_solve_is_made_once(slots):
    params, batch = torch.linspace(-1, 1, 6), torch.linspace(1, 50, 6)

    def run(checkpoints):
        opt = ODEOptimizer(GradientFlow(quartic), Adaptive(1e-6, 1e-6), checkpoints=checkpoints)
        return opt.value_and_grad(outer)(params, batch, TimeGrid.uniform(2.0, 3), batch)

    known, found = run(Binomial(slots)), run(Online(slots))
    assert torch.equal(known.grads.params, found.grads.params)
    assert torch.equal(known.grads.dt, found.grads.dt)
    assert found.stats.stored_states <= slots
    assert found.stats.gradient_evaluations < known.stats.gradient_evaluations
