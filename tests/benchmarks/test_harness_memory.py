"""What is said about memory, against computations whose need is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness import costs
from odeopt import Every, GradientFlow, ODEOptimizer, TimeGrid

MEGA = 1_000_000
ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


def two_at_a_time(device):
    first = torch.zeros(MEGA, dtype=torch.float32, device=device)
    second = first.exp()
    del first
    third = second + 1
    del second
    return third.sum()


def test_the_peak_of_a_known_computation(device):
    peak = costs.peak_live_bytes(lambda: two_at_a_time(device), device)
    assert 8 * MEGA <= peak < 8 * MEGA + 4096


def test_what_was_there_before_is_not_counted(device):
    there = torch.zeros(MEGA, dtype=torch.float64, device=device)
    peak = costs.peak_live_bytes(lambda: there[: MEGA // 2] + 1, device)
    assert 4 * MEGA <= peak < 4 * MEGA + 4096


def test_memory_freed_in_between_is_not_counted_twice(device):
    def one_at_a_time():
        for _ in range(5):
            torch.zeros(MEGA, dtype=torch.float32, device=device)

    peak = costs.peak_live_bytes(one_at_a_time, device)
    assert 4 * MEGA <= peak < 4 * MEGA + 4096


def test_exact_adjoints_keep_one_state_per_step(device):
    size = 1000
    loss = lambda u, b: (b * u.square()).sum() / 2  # noqa: E731
    opt = ODEOptimizer(GradientFlow(loss), checkpoints=Every(1))
    call = opt.value_and_grad(lambda u, b: (u - b).sum())
    u, b = torch.ones(size, device=device), torch.ones(size, device=device)

    def peak(steps):
        grid = TimeGrid.from_lr(0.01, steps)
        return costs.peak_live_bytes(lambda: call(u, b, grid, b), device)

    per_step = (peak(60) - peak(20)) / 40
    assert per_step == pytest.approx(8 * size, rel=0.05)


def test_the_outer_loss_needs_the_memory_of_its_own_backward_pass(device):
    weight = torch.eye(20, device=device)
    examples = torch.ones(1000, 20, device=device)

    def outer(params, batch):
        hidden = batch * params
        for _ in range(20):
            hidden = torch.tanh(hidden @ weight)
        return hidden.square().mean()

    opt = ODEOptimizer(GradientFlow(lambda u, b: u.square().sum()))
    call = opt.value_and_grad(outer)
    u, grid = torch.ones(20, device=device), TimeGrid.from_lr(0.01, 1)

    def alone():
        leaf = u.clone().requires_grad_()
        return torch.autograd.grad(outer(leaf, examples), leaf)

    solve = costs.peak_live_bytes(lambda: call(u, None, grid, examples), device)
    assert solve <= 1.1 * costs.peak_live_bytes(alone, device)


def test_operators_are_recorded_again_after_an_error():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        costs.peak_live_bytes(fail, torch.device("cpu"))
    with torch.autograd.profiler.profile() as recorded:
        torch.ones(3).exp()
    assert any("exp" in event.name for event in recorded.function_events)


RESIDENT = f"""
import torch
from benchmarks.harness import costs
peak = costs.ResidentPeak()
before = peak.bytes()
filled = torch.ones(16 * {MEGA}, dtype=torch.float32)
del filled
print(peak.bytes() - before, costs.ResidentPeak().bytes())
"""
"""Run in a process of its own: in an old one, memory may be resident already."""


@linux
def test_resident_memory_grows_with_what_is_touched_and_stays_a_peak():
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True, cwd=ROOT
    )
    grown, afterwards = map(int, done.stdout.split())
    assert grown > 60 * MEGA
    assert afterwards < 60 * MEGA


@linux
def test_more_than_the_limit_cannot_be_had_and_the_limit_is_lifted_again():
    cpu = torch.device("cpu")
    with pytest.raises(RuntimeError) as caught, costs.at_most(64 * MEGA, cpu):
        torch.ones(256 * MEGA, dtype=torch.float32)
    assert costs.is_out_of_memory(caught.value)
    assert torch.ones(256 * MEGA, dtype=torch.uint8).numel() == 256 * MEGA


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert costs.is_out_of_memory(MemoryError())
    assert not costs.is_out_of_memory(RuntimeError("shapes differ"))
    assert not costs.is_out_of_memory(ValueError("bad_alloc"))


def test_the_peak_of_a_run_in_several_records():
    peak, kept = costs.LivePeak(ticks=3), []
    with peak:
        for _ in range(10):
            kept.append(torch.zeros(MEGA // 10, dtype=torch.float32))
            peak.tick()
        del kept[:8]
        for _ in range(10):
            torch.zeros(MEGA // 5, dtype=torch.float32)
            peak.tick()
    assert 4 * MEGA <= peak.bytes < 4 * MEGA + 65536


def test_seconds_in_turn_are_by_the_clock_that_is_given(device):
    now, order = [0.0], []

    def spend(name, seconds):
        order.append(name)
        now[0] += seconds

    runs = {"a": lambda: spend("a", 1.0), "b": lambda: spend("b", 2.0)}
    assert costs.in_turn(runs, 5, device, 7.0, lambda: now[0]) == {"a": [1.0] * 2, "b": [2.0] * 2}
    assert order == ["a", "b"] * 2  # a third round would end later than at 7
