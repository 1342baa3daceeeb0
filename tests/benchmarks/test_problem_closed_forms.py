"""The linear test equation, and the transcription of the published tables."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from benchmarks.problems import closed_form, published


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


def test_columns_are_complete():
    for columns in published.TABLE_4.values():
        assert set(columns) == {"autodiff", "adjoint"}
        assert {len(column) for column in columns.values()} == {len(published.TABLE_4_STATES)}
    assert list(published.TABLE_4) == list(published.TABLE_4_ADJOINT) == [0.1, 0.5, 1.0, 2.0]
    assert {len(column) for column in published.TABLE_5.values()} == {len(published.TABLE_5_STATES)}


@pytest.mark.parametrize("t_end", [0.1, 0.5, 1.0, 2.0])
def test_the_adjoint_column_does_not_depend_on_the_initial_state(t_end):
    name = published.TABLE_4_ADJOINT[t_end]
    (other,) = {"autodiff", "adjoint"} - {name}
    for mine, theirs in zip(
        published.TABLE_4[t_end][name][:4], published.TABLE_4[t_end][other][:4], strict=True
    ):
        assert mine.std < 5e-7
        assert mine.std < theirs.std


def midpoint_error(t_end, states):
    """Relative error of the factor e^(-T^2) by the midpoint rule with states - 1 steps."""
    step = t_end / (states - 1)
    times = [step * index for index in range(states - 1)]
    factors = [1 - 2 * step * (t + step / 2) * (1 - step * t) for t in times]
    return abs(math.prod(factors) / math.exp(-(t_end**2)) - 1)


@pytest.mark.parametrize("t_end", [0.1, 0.5, 1.0, 2.0])
def test_the_adjoint_column_is_the_midpoint_rule(t_end):
    column = published.TABLE_4[t_end][published.TABLE_4_ADJOINT[t_end]]
    for states, entry in zip(published.TABLE_4_STATES, column, strict=True):
        expected = midpoint_error(t_end, states)
        rounding = 5e-6  # single precision; the largest disagreement is at T = 0.5, N = 1000
        assert entry.mean == pytest.approx(expected, rel=0.005, abs=rounding)
        if entry.mean > 1e-5:
            assert entry.mean == pytest.approx(expected, rel=0.02)


def test_table_5_is_first_order_at_the_shortest_time():
    last = published.TABLE_5_REFERENCE_STATES - 1
    constants = [
        entry.mean / (1 / (states - 1) - 1 / last)
        for states, entry in zip(published.TABLE_5_STATES, published.TABLE_5[0.1], strict=True)
    ]
    assert max(constants) / min(constants) < 1.02


@pytest.mark.parametrize("t_end", [0.1, 0.3, 0.5])
def test_table_5_has_one_relative_spread_per_column(t_end):
    ratios = [entry.std / entry.mean for entry in published.TABLE_5[t_end]]
    assert max(ratios) / min(ratios) < 1.05
