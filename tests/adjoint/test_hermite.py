"""Interpolated states, and how far they miss the flow."""

from __future__ import annotations

import math

import pytest
import torch

from odeopt.adjoint.base import Interval
from odeopt.adjoint.continuous import hermite, midpoint_defect


def interval(dt, y0, y1):
    return Interval(y0.new_zeros(()), y0.new_tensor(dt), y0, y1)


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_a_cubic_is_met_exactly(device, position):
    coefficients = torch.randn(4, 3).to(device)
    powers = torch.arange(4.0, device=device)

    def state(t):
        return t**powers @ coefficients

    def velocity(t):
        return powers[1:] * t ** powers[:3] @ coefficients[1:]

    found = hermite(interval(2.0, state(0.0), state(2.0)), velocity(0.0), velocity(2.0), position)
    torch.testing.assert_close(found, state(2 * position))


@pytest.mark.parametrize(("z", "expected"), [(1.0, 0.00203), (4.0, 0.388), (6.0, 1.48)])
def test_the_defect_of_a_mode_that_decays(device, z, expected):
    ends = torch.tensor([[1.0], [math.exp(-z)]], device=device)
    f0, f1 = -z * ends
    one = interval(1.0, *ends)
    found = midpoint_defect(one, f0, f1, -z * hermite(one, f0, f1, 0.5))
    assert float(found) == pytest.approx(expected, rel=0.005)
    longer = interval(2.0, *ends)
    halved = midpoint_defect(longer, f0 / 2, f1 / 2, -z / 2 * hermite(one, f0, f1, 0.5))
    torch.testing.assert_close(halved, found)


def test_a_state_at_rest_has_no_defect_for_its_rounding(device):
    """Its last bits move, and its velocity is what rounding makes of zero."""
    eps = torch.finfo(torch.float64).eps
    rest = torch.full((2,), 3.0, device=device)
    noise = eps * torch.tensor([1.0, -1.0], device=device)
    found = midpoint_defect(interval(1.0, rest, rest + 4 * noise), noise, noise, -8 * noise)
    assert 0 < float(found) < 1e-6


def test_a_state_of_zero_that_stays_has_none(device):
    zero = torch.zeros(2, device=device)
    assert midpoint_defect(interval(1.0, zero, zero), zero, zero, zero) == 0
