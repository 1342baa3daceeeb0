"""The spectral radius that is followed along a solve."""

from __future__ import annotations

import pytest
import torch

from odeopt.engine.stats import Stats
from odeopt.solver.spectral_radius import LONGEST, REFRESH, PowerIteration, unit


def make(rates, stats=None):
    """A power iteration on the flow y' = -rates * y, whose first slope is along the first mode."""
    slope = torch.zeros_like(rates)
    slope[..., 0] = 1.0
    stats = stats or Stats()

    def velocity(t, y):
        stats.gradient_evaluations += 1
        return -rates * y

    return PowerIteration(velocity, slope)


def estimate(power, rates, last=None, wanted=None):
    lead, y = rates.shape[:-1], torch.ones_like(rates)
    last = torch.zeros(lead).to(rates) if last is None else last
    wanted = torch.ones(lead, dtype=torch.bool).to(rates.device) if wanted is None else wanted
    return power.estimate(torch.zeros(lead).to(rates), y, -rates * y, last, wanted)


def test_of_a_symmetric_jacobian_it_is_the_largest_eigenvalue(device):
    rates, stats = torch.tensor([1.0, 3.0, 100.0], device=device), Stats()
    found = estimate(make(rates, stats), rates)
    assert found.item() == pytest.approx(100.0, rel=0.02)
    assert 2 <= stats.gradient_evaluations <= LONGEST
    assert estimate(make(rates), rates, last=found).item() >= found.item() * 0.98


def test_tasks_of_which_it_is_not_wanted_keep_the_last_one(device):
    rates = torch.tensor([[1.0, 50.0], [2.0, 80.0]], device=device)
    last = torch.tensor([7.0, 7.0], device=device)
    found = estimate(make(rates), rates, last, torch.tensor([True, False], device=device))
    assert found[0].item() == pytest.approx(50.0, rel=0.02)
    assert found[1].item() == 7.0


def test_a_random_vector_is_mixed_in_now_and_then(device):
    rates = torch.tensor([1.0, 3.0, 100.0], device=device)
    power, drawn = make(rates), []
    for _ in range(2 * REFRESH):
        before = power._generator.get_state()
        estimate(power, rates)
        drawn.append(not torch.equal(before, power._generator.get_state()))
    assert drawn == [k % REFRESH == REFRESH - 1 for k in range(2 * REFRESH)]


def test_a_mode_that_has_grown_past_the_others_is_seen_by_then(device):
    rates = torch.tensor([10.0, 1.0], device=device)
    power = make(rates)
    power._vector = torch.tensor([1.0, 0.0], device=device)
    rates[1] = 40.0  # the vector has nothing of it
    found = [estimate(power, rates).item() for _ in range(REFRESH)]
    assert found[0] == pytest.approx(10.0, rel=1e-3)
    assert found[-1] == pytest.approx(40.0, rel=0.02)


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_what_has_no_direction_is_left_out(device, bad):
    rows = torch.tensor([[3.0, 4.0], [bad, 0.0]], device=device)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0]], device=device)
    torch.testing.assert_close(unit(rows), expected, rtol=1e-15, atol=0)
