"""Checkpoint schedules, carried out on a fake model whose states are integers."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from odeopt import Binomial, Density, Every, Graded
from odeopt.checkpoint.base import (
    Advance,
    Free,
    Progress,
    Pull,
    Restore,
    Store,
    pull_mesh,
)
from odeopt.checkpoint.binomial import optimal_advances, optimal_replays, reach, repetitions
from odeopt.checkpoint.graded import Monitor, _nearest

LENGTHS = range(1, 61)
SOME_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 13, 21, 34, 59, 60)


@dataclass
class Machine:
    """Carries out actions as strictly as it can; state k is the integer k."""

    n: int
    running: int = 0
    kept: dict[int, int] = field(default_factory=dict)
    pulled: list[tuple[int, int]] = field(default_factory=list)
    advanced: list[int] = field(default_factory=list)
    most: int = 0

    def run(self, action):
        match action:
            case Advance(start, stop):
                assert start == self.running, f"{action} at {self.running}"
                assert start < stop <= self.n, action
                self.advanced += range(start, stop)
                self.running = stop
            case Store(index):
                assert index == self.running, f"{action} at {self.running}"
                assert index not in self.kept, f"{action} is kept already"
                self.kept[index] = self.running
                self.most = max(self.most, len(self.kept))
            case Restore(index):
                self.running = self.kept[index]
            case Free(index):
                del self.kept[index]
            case Pull(start, stop):
                assert start == self.running, f"{action} at {self.running}"
                assert start < stop, action
                self.pulled.append((start, stop))
            case _:
                raise AssertionError(action)


def straight(index):
    return Progress(torch.tensor(float(index)), torch.full((2,), float(index)))


def decaying(index):
    return Progress(torch.tensor(0.1 * index), torch.tensor([1.0, 2.0]) * 0.7**index)


def frozen(index):
    """Zero-length steps: time and state stand still."""
    return Progress(torch.tensor(float(min(index, 3))), torch.ones(2) * 0.5 ** min(index, 3))


def two_tasks(index):
    end = torch.tensor([index, min(index, 4)]) * 0.1
    return Progress(end, torch.exp(-end)[:, None].expand(2, 3))


PATHS = [straight, decaying, frozen, two_tasks]


def forward(schedule, n, path=straight, online=False):
    """The machine after the forward stream; the last state must have been reached."""
    machine = Machine(n)
    stream = schedule.forward(None if online else n)
    action = next(stream)
    while True:
        assert not isinstance(action, Pull)
        machine.run(action)
        if online and machine.running == n:
            stream.close()
            break
        try:
            action = stream.send(path(machine.running))
        except StopIteration:
            break
    assert n - 1 in machine.advanced
    return machine


def both(schedule, n, path=straight, online=False):
    """The machine after both sweeps, what was kept between them, and the most kept before."""
    machine = forward(schedule, n, path, online)
    between, most = sorted(machine.kept), machine.most
    if not isinstance(schedule, Graded):
        assert machine.advanced == list(range(n)), "the forward sweep makes each step once"
    machine.advanced.clear()
    machine.running = n - 1
    for action in schedule.backward(n, between):
        machine.run(action)
    return machine, between, most


def assert_reverses(machine):
    assert machine.pulled == [(k, k + 1) for k in reversed(range(machine.n))]
    assert machine.kept == {}


@functools.cache
def fewest_advances(n, s):
    """t(n, s) by dynamic programming."""
    if n <= 1:
        return 0
    if s == 1:
        return n * (n - 1) // 2
    return min(i + fewest_advances(i, s) + fewest_advances(n - i, s - 1) for i in range(1, n))


@pytest.mark.parametrize("n", LENGTHS)
def test_every_reverses_each_step_once(n):
    for k in range(1, n + 2):
        for online in (False, True):
            machine, between, _ = both(Every(k), n, online=online)
            assert_reverses(machine)
            assert between == list(range(0, n, k))


@pytest.mark.parametrize("n", LENGTHS)
def test_every_replays_and_keeps_what_it_documents(n):
    for k in range(1, n + 2):
        machine, between, _ = both(Every(k), n)
        assert len(machine.advanced) == n - len(between)
        assert machine.most <= len(between) + max(k - 2, 0)


@pytest.mark.parametrize("n", LENGTHS)
def test_density_reverses_each_step_once(n):
    for slots in range(1, n + 3):
        machine, between, most = both(Density(slots), n)
        assert_reverses(machine)
        assert len(between) == most == min(slots, n)
        assert len(machine.advanced) == n - len(between)


@pytest.mark.parametrize("n", LENGTHS)
def test_density_gaps_differ_by_at_most_one(n):
    for slots in range(1, n + 3):
        nodes = sorted(forward(Density(slots), n).kept)
        gaps = [stop - start for start, stop in zip(nodes, [*nodes[1:], n], strict=True)]
        assert nodes[0] == 0
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", SOME_LENGTHS)
def test_graded_reverses_each_step_once_within_its_slots(n, path, device):
    for slots in sorted({1, 2, 3, 4, n // 2 + 1, n, n + 1}):
        machine, between, most = both(Graded(slots), n, lambda k: _on(path(k), device))
        assert_reverses(machine)
        assert between[0] == 0
        assert len(between) == most == min(slots, n)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", SOME_LENGTHS)
def test_graded_makes_at_most_two_forward_sweeps(n, path, device):
    for slots in (1, 2, n // 2 + 1, n):
        machine = forward(Graded(slots), n, lambda k: _on(path(k), device))
        assert machine.advanced[:n] == list(range(n))
        assert machine.advanced[n:] == list(range(max(machine.kept)))


def test_graded_puts_its_nodes_where_the_trajectory_bends(device):
    def layer(index):
        t = torch.tensor(index / 400, device=device)
        return Progress(t, torch.stack([torch.exp(-40 * t), t]))

    nodes = sorted(forward(Graded(20), 400, layer).kept)
    assert sum(node < 100 for node in nodes) > sum(node >= 100 for node in nodes)


def test_graded_equidistributes_curvature_and_time(device):
    """For u = exp(-a t) the root of the curvature on [0, t] is as 1 - exp(-a t / 2)."""
    n, slots, rate = 2000, 25, 12.0

    def path(index):
        t = torch.tensor(index / n, device=device)
        return Progress(t, torch.exp(-rate * t)[None])

    t = torch.tensor([*sorted(forward(Graded(slots), n, path).kept), n]) / n
    bend = (1 - torch.exp(-rate * t / 2)) / (1 - torch.exp(torch.tensor(-rate / 2)))
    shares = (0.5 * t + 0.5 * bend).diff()
    assert float((shares * slots - 1).abs().max()) < 0.1


@functools.cache
def binomial(n, slots):
    return both(Binomial(slots), n)


@pytest.mark.parametrize("n", LENGTHS)
def test_binomial_reverses_each_step_once_within_its_slots(n):
    for slots in range(1, n + 1):
        machine, _, most = binomial(n, slots)
        assert_reverses(machine)
        assert most <= slots
        assert machine.most <= slots


@pytest.mark.parametrize("n", LENGTHS)
def test_binomial_replays_no_more_than_necessary(n):
    for slots in range(1, n + 1):
        machine, _, _ = binomial(n, slots)
        assert len(machine.advanced) == optimal_replays(n, slots)


@pytest.mark.parametrize("n", SOME_LENGTHS)
def test_binomial_advances_no_step_more_often_than_its_bound(n):
    for slots in range(1, n + 1):
        machine, _, _ = binomial(n, slots)
        replays = Counter(machine.advanced)
        first_sweep = 1  # up to n - 1; the last step is never replayed
        assert max(replays.values(), default=0) + first_sweep <= max(repetitions(n, slots), 1)
        assert replays[n - 1] == 0


@pytest.mark.parametrize("n", LENGTHS)
def test_optimal_advances_is_the_dynamic_programme(n):
    for slots in range(1, n + 1):
        assert optimal_advances(n, slots) == fewest_advances(n, slots)
        assert optimal_replays(n, slots) == fewest_advances(n, slots) - (n - 1)


@pytest.mark.parametrize(
    ("n", "slots", "advances"), [(10, 3, 15), (20, 3, 45), (56, 5, 140), (100, 5, 316)]
)
def test_optimal_advances_of_the_literature(n, slots, advances):
    assert optimal_advances(n, slots) == advances


@pytest.mark.parametrize(
    "schedule", [Every(1), Every(3), Density(2), Graded(2), Binomial(1), Binomial(2), Binomial(9)]
)
def test_nothing_is_done_backward_where_no_step_was_made(schedule):
    assert list(schedule.backward(0, [])) == []


@pytest.mark.parametrize(("n", "slots"), [(1, 3), (2, 9), (7, 100)])
def test_binomial_with_slots_to_spare_replays_nothing(n, slots):
    machine, between, _ = both(Binomial(slots), n)
    assert_reverses(machine)
    assert machine.advanced == []
    assert len(between) <= n


@pytest.mark.parametrize(("n", "slots"), [(1500, 1500), (3000, 1200)])
def test_binomial_works_with_many_slots(n, slots):
    machine, _, _ = both(Binomial(slots), n)
    assert_reverses(machine)
    assert machine.most <= slots


def test_binomial_is_optimal_over_a_long_horizon():
    machine, _, most = both(Binomial(20), 10_000)
    assert_reverses(machine)
    assert most == machine.most == 20
    assert len(machine.advanced) == optimal_replays(10_000, 20)


@pytest.mark.parametrize("schedule", [Every(1), Every(4), Density(7), Density(1), Graded(5)])
@pytest.mark.parametrize("n", SOME_LENGTHS)
def test_mesh_stream_covers_the_grid_without_gaps(schedule, n, device):
    machine = forward(schedule, n, lambda k: _on(decaying(k), device))
    machine.running = n - 1
    for action in pull_mesh(sorted(machine.kept), n):
        machine.run(action)
    starts, stops = zip(*machine.pulled, strict=True)
    assert stops[0] == n
    assert starts[-1] == 0
    assert starts[:-1] == stops[1:]
    assert machine.kept == {}


def _on(progress, device):
    return Progress(progress.t.to(device), progress.y.to(device))


@pytest.mark.parametrize(("n", "coarser"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_a_mesh_half_as_fine(n, coarser):
    for kind in (Graded, Density):
        assert kind(n).coarser().n == coarser


def test_the_shares_of_graded_steps_by_hand():
    """Half by duration, half by duration times the root of the curvature, as differences give it.

    The first step has none of its own: it takes that of the second.
    """
    times, states = [0.0, 1.0, 3.0, 4.0], [0.0, 2.0, 3.0, 7.0]
    start, *rest = [
        Progress(torch.tensor(t), torch.tensor([y])) for t, y in zip(times, states, strict=True)
    ]
    monitor = Monitor(start)
    for progress in rest:
        monitor.observe(progress)
    bends = [math.sqrt((2.0 - 0.5) / 3), math.sqrt((4.0 - 0.5) / 3)]  # slopes 2, 0.5 and 4
    durations = [1.0, 2.0, 1.0]
    curved = [bends[0] * 1, bends[0] * 2, bends[1] * 1]
    expected = [0.5 * c / sum(curved) + 0.5 * d / 4 for c, d in zip(curved, durations, strict=True)]
    assert monitor.shares() == pytest.approx(expected)


def test_nothing_is_reversed_by_less_than_no_replay_or_slot():
    assert [reach(3, r) for r in (-1, 0, 1, 2)] == [0, 1, 4, 10]
    assert [reach(s, 2) for s in (-1, 0, 1)] == [0, 1, 3]


@pytest.mark.parametrize(
    ("target", "expected"), [(-1.0, 0), (0.4, 0), (0.6, 1), (2.4, 1), (2.6, 2), (9.0, 2)]
)
def test_the_nearest_of_ascending_numbers(target, expected):
    assert _nearest([0.0, 1.0, 4.0], target) == expected
