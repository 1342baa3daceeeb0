"""Memory that a solve has freed is given back before it adds up."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

import odeopt
from odeopt.tools import resident

MIB = 2**20

PROGRAM = """
import torch
import odeopt
from odeopt.tools import resident

def grown(steps):
    params = torch.ones(4 * 2**20)
    opt = odeopt.ODEOptimizer(
        odeopt.SGD(lambda params, batch: params.tanh().square().mean()),
        checkpoints=odeopt.MemoryBudget("32MiB"),
    )
    loss = lambda params, batch: params.mean()
    opt.value_and_grad(loss)(params, (), odeopt.TimeGrid.from_lr(0.1, steps), ())

grown(1)
before = resident._resident()
grown(6)
kept = resident._resident() - before
assert odeopt.release_memory()
print(kept, resident._resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can give memory back")
def test_what_stays_after_a_solve_can_be_given_back():
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    kept, left = map(int, found.stdout.split())
    assert left < 8 * MIB
    assert kept < 1024 * MIB


@pytest.fixture
def memory(monkeypatch):
    """A process of which the test says how large it is, and which notes what is given back."""
    found = {"resident": 100 * MIB, "releases": 0}

    def release():
        found["releases"] += 1
        found["resident"] = 110 * MIB

    monkeypatch.setattr(resident, "_resident", lambda: found["resident"])
    monkeypatch.setattr(resident, "release_memory", release)
    return found


def grow(memory, guard, sizes, kept=20 * MIB):
    for size in sizes:
        memory["resident"] = size * MIB
        guard.step_done(kept)


def test_memory_is_given_back_when_it_is_twice_what_is_kept_and_a_step_takes(memory):
    guard = resident.ResidentGuard()
    guard.begin(torch.zeros(2**20))
    grow(memory, guard, [130, 150, 180, 199])  # a step takes 30, and 20 are kept
    assert memory["releases"] == 0
    grow(memory, guard, [201])
    assert memory["releases"] == 1
    grow(memory, guard, [140, 170, 199])
    assert memory["releases"] == 1


def test_small_states_are_not_looked_at(memory):
    guard = resident.ResidentGuard()
    guard.begin(torch.zeros(1000))
    grow(memory, guard, [130, 1000, 2000])
    assert memory["releases"] == 0


@pytest.mark.parametrize("checkpoints", [odeopt.Every(1), odeopt.Binomial(3)])
def test_both_sweeps_look_after_each_step(checkpoints, monkeypatch):
    looks = []
    monkeypatch.setattr(resident.ResidentGuard, "step_done", lambda self, kept: looks.append(kept))
    params = torch.ones(3)
    opt = odeopt.ODEOptimizer(
        odeopt.SGD(lambda params, batch: params.square().sum()), checkpoints=checkpoints
    )
    res = opt.value_and_grad(lambda params, batch: params.sum())(
        params, (), odeopt.TimeGrid.from_lr(0.1, 9), ()
    )
    assert len(looks) == 9 + res.stats.replayed_steps + 9
    assert max(looks) == res.stats.stored_bytes
