"""A memory budget keeps within its parts and says beforehand what it will cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt import Every, InputError, MemoryBudget, TimeGrid
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.checkpoint.plan import format_bytes, parse_bytes
from odeopt.checkpoint.simulation import simulate
from odeopt.testing import check_schedule
from tests.checkpoint.conftest import Bench, same

STATE = 12 * 8
FIELDS = ("stored_states", "stored_bytes", "device_bytes", "host_bytes", "disk_bytes")


def assert_as_planned(stats, plan):
    assert stats.plan == plan
    for name in (*FIELDS, "replayed_steps"):
        assert getattr(stats, name) == getattr(plan, name), name


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 40))
def test_it_costs_what_it_says(tmp_path, device, host, disk, steps):
    if device + host + disk == 0:
        return
    budget = MemoryBudget(device * STATE + 5, host * STATE, (tmp_path, disk * STATE + 95))
    plan = budget.describe(STATE, steps)
    found = Bench(steps).run(budget)
    assert_as_planned(found.stats, plan)
    assert same(found, Bench(steps).run(Every(1)))
    assert plan.device_bytes <= device * STATE
    assert plan.host_bytes <= host * STATE
    assert plan.disk_bytes <= disk * STATE
    assert plan.replayed_steps == (optimal_replays(steps, device + host + disk) if steps else 0)


@pytest.mark.slow
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
def test_it_costs_what_it_says_when_the_length_is_unknown(tmp_path, device, host, disk):
    def run(checkpoints):
        return Bench().run(checkpoints, odeopt.Adaptive(1e-5, 1e-5), grid=TimeGrid.uniform(4.0, 3))

    budget = MemoryBudget(device * STATE, host * STATE, (tmp_path, disk * STATE))
    found = run(budget)
    assert_as_planned(found.stats, budget.describe(STATE, found.stats.steps, known=False))
    assert same(found, run(Every(1)))
    assert found.stats.device_bytes <= device * STATE
    assert found.stats.host_bytes <= host * STATE
    assert found.stats.disk_bytes <= disk * STATE


def test_all_tasks_count(device):
    found = Bench(30, tasks=3).run(MemoryBudget(5 * 3 * STATE))
    assert found.stats.stored_states == 5
    assert found.stats.plan.state_bytes == 3 * STATE


def test_nothing_is_replayed_if_all_states_fit():
    found = Bench(30).run(MemoryBudget("1MiB"))
    assert found.stats.replayed_steps == 0
    assert found.stats.plan.schedule == "every state"
    assert same(found, Bench(30).run(Every(1)))


def test_the_busiest_slots_are_in_the_fastest_tier(tmp_path):
    fitted = MemoryBudget(2 * STATE, 3 * STATE, (tmp_path, 4 * STATE)).fit(STATE, 300)
    traffic = simulate(fitted, 300).traffic
    assert traffic[0] / 2 >= traffic[1] / 3 >= traffic[2] / 4


@pytest.mark.parametrize("adjoint", [
    odeopt.TruncatedAdjoint(17), odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
])  # fmt: skip
def test_other_adjoints_replay_as_planned(adjoint):
    budget = MemoryBudget(3 * STATE)
    found = Bench(40).run(budget, adjoint=adjoint)
    steps = 17 if isinstance(adjoint, odeopt.TruncatedAdjoint) else 40
    assert_as_planned(found.stats, budget.describe(STATE, steps))
    assert same(found, Bench(40).run(Every(1), adjoint=adjoint))


@pytest.mark.parametrize("solver", [odeopt.Euler(), odeopt.Adaptive(1e-5, 1e-5)])
def test_solve_takes_a_budget_for_the_device(solver):
    def run(checkpoints):
        params = torch.linspace(-1, 1, 6, requires_grad=True)
        field = odeopt.GradientFlow(lambda p, batch: (batch * p.square()).sum() + p.pow(4).sum())
        opt = odeopt.ODEOptimizer(field, solver, checkpoints=checkpoints)
        sol = opt.solve(params, torch.linspace(1, 9, 6), TimeGrid.uniform(1.0, 30))
        (sol.params**2).sum().backward()
        return params.grad

    assert torch.equal(run(MemoryBudget(4 * 48)), run(Every(1)))
    with pytest.raises(odeopt.CompatibilityError, match="value_and_grad"):
        run(MemoryBudget("1MiB", host="1MiB"))


def test_a_budget_below_one_state_says_what_is_missing():
    with pytest.raises(InputError, match=r"one state takes 288 B.*95 B on device"):
        Bench(30, tasks=3).run(MemoryBudget(95))


def test_a_host_part_alone_is_enough():
    found = Bench(30).run(MemoryBudget(0, host=4 * STATE))
    assert (found.stats.device_bytes, found.stats.host_bytes) == (0, 4 * STATE)


def test_the_description_reads_well(tmp_path):
    plan = MemoryBudget("2MiB", host="4MiB", disk=(tmp_path, "1GiB")).describe(2**20, 20)
    assert str(plan) == (
        "every state for 20 steps with states of 1 MiB\n"
        "slots:          2 on device, 4 on host, 13 on disk\n"
        "kept at most:   19 states, 2 MiB on device, 4 MiB on host, 13 MiB on disk\n"
        "replayed steps: 0 (0.00 for each step)"
    )


@pytest.mark.parametrize("budget", ["16B", "64B", "1kB"])
def test_it_passes_the_conformance_suite(tmp_path, budget):
    check_schedule(MemoryBudget(budget))
    check_schedule(MemoryBudget(budget, host=32, disk=(tmp_path, 48)))


@pytest.mark.parametrize(("text", "count"), [
    ("512MiB", 2**29), ("2GiB", 2**31), ("1.5 kB", 1500), ("7B", 7), (12, 12), (" 3TB ", 3 * 10**12)
])  # fmt: skip
def test_sizes_are_read(text, count):
    assert parse_bytes(text, "device") == count


@pytest.mark.parametrize("text", ["512", "MiB", "-3MiB", "3 miles", -1, 1.5, True, None, ("a",)])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="device"):
        MemoryBudget(text)


def test_sizes_are_written():
    assert [format_bytes(n) for n in (0, 1023, 1024, 3 * 2**29)] == [
        "0 B", "1023 B", "1 KiB", "1.5 GiB"
    ]  # fmt: skip


@pytest.mark.parametrize("disk", ["/scratch", ("/scratch",), ("/scratch", "much"), (3, "1GiB")])
def test_a_disk_part_is_a_folder_and_a_size(disk):
    with pytest.raises(InputError):
        MemoryBudget("1GiB", disk=disk)


def test_an_unfitted_budget_has_no_actions():
    with pytest.raises(odeopt.OdeoptError, match="fit"):
        MemoryBudget("1GiB").forward(3)
    with pytest.raises(odeopt.OdeoptError, match="fit"):
        MemoryBudget("1GiB").backward(3, [0])


@pytest.mark.parametrize(("slots", "all_of_them"), [(8, False), (9, True), (50, True)])
def test_a_budget_for_every_state_replays_nothing(slots, all_of_them):
    """The last of the ten is the running one."""
    assert MemoryBudget(slots * STATE).fit(STATE, 10).keeps_all is all_of_them


def test_each_unit_is_what_it_says():
    for power, (decimal, binary) in enumerate(zip("kMGT", "KMGT", strict=True), start=1):
        assert parse_bytes(f"3 {decimal}B", "device") == 3 * 1000**power
        assert parse_bytes(f"3 {binary}iB", "device") == 3 * 1024**power
        assert format_bytes(3 * 1024**power) == f"3 {binary}iB"
    assert parse_bytes("7 B", "device") == 7
