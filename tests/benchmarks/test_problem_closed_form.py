"""The test equation with a known gradient."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import solve_ivp

from benchmarks.problems import closed_form


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("t_end", [0.1, 0.5, 1.0, 2.0])
def test_the_solution_solves_the_equation(t_end):
    y0 = closed_form.initial_states(5, seed=0)
    found = solve_ivp(
        lambda t, y: closed_form.velocity(scalar(t), torch.from_numpy(y)).numpy(),
        (0, t_end),
        y0.numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    expected = torch.from_numpy(found.y[:, -1])
    torch.testing.assert_close(
        closed_form.solution(scalar(t_end), y0), expected, rtol=1e-10, atol=1e-11
    )


@pytest.mark.parametrize("t_end", [0.1, 0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_loss(t_end):
    y0 = closed_form.initial_states(5, seed=1).requires_grad_()
    closed_form.loss(closed_form.solution(scalar(t_end), y0)).sum().backward()
    torch.testing.assert_close(y0.grad, closed_form.gradient(scalar(t_end), y0.detach()))


def test_initial_states_are_seeded_and_in_range():
    y0 = closed_form.initial_states(1000, seed=2)
    assert torch.equal(y0, closed_form.initial_states(1000, seed=2))
    assert 0 <= y0.min() < 0.01
    assert 0.99 < y0.max() <= 1
