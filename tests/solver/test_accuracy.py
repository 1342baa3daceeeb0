"""Solvers converge at their order, and agree with other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from support.solvers import final, optimizer, outside, start, turning

import odeopt
from odeopt import (
    RK4,
    Adaptive,
    DormandPrince,
    Euler,
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    TimeGrid,
    Torchdiffeq,
)
from odeopt.solver import BOGACKI_SHAMPINE

ONE_STEP = {"rtol": 1e9, "atol": 1e9, "first_step": 1e3}


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (Euler(), 1, 400),
        (ModifiedEuler(), 2, 100),
        (Midpoint(), 2, 100),
        (RK4(), 4, 60),
        (Adaptive(**ONE_STEP, tableau=BOGACKI_SHAMPINE), 3, 50),
        (Adaptive(**ONE_STEP), 5, 24),
        (Torchdiffeq("midpoint"), 2, 100),
        (Torchdiffeq("rk4"), 4, 60),
    ],
    ids=["euler", "modified-euler", "midpoint", "rk4", "bs3", "dopri5", "td-midpoint", "td-rk4"],
)
def test_order_of_convergence(solver, order, steps, device):
    expected = outside(2.0, (3.0,))[-1]
    ends = [
        final(solver, TimeGrid.uniform(3.0, steps * factor), device, speed=2.0).params.cpu()
        for factor in (1, 2, 4, 8)
    ]
    slopes = -np.diff(np.log2([float((end - expected).norm()) for end in ends]))
    assert abs(slopes.mean() - order) < 0.2, slopes


@pytest.mark.parametrize("tableau", [odeopt.solver.DORMAND_PRINCE, BOGACKI_SHAMPINE])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7])
def test_adaptive_meets_its_tolerance(rtol, tableau, device):
    grid = TimeGrid.uniform(3.0, 1)
    found = final(Adaptive(rtol, rtol, tableau), grid, device, speed=2.0).params.cpu()
    error = float((found - outside(2.0, (3.0,))[-1]).norm())
    assert error < 20 * rtol


def test_adaptive_needs_about_as_many_evaluations_as_scipy(device):
    grid, speed = TimeGrid.uniform(3.0, 1), torch.tensor(2.0, device=device)
    stats = ODEOptimizer(turning, Adaptive(1e-7, 1e-9)).solve(start(device), speed, grid).stats

    def rhs(t, y):
        args = torch.tensor(t), torch.from_numpy(y), (), None, torch.tensor(2.0)
        return turning(*args).numpy()

    theirs = solve_ivp(rhs, (0, 3.0), [0.8, -1.1], "RK45", rtol=1e-7, atol=1e-9)
    assert 0.5 < stats.gradient_evaluations / theirs.nfev < 2


@pytest.mark.parametrize("solver", [DormandPrince(1e-10, 1e-12), Torchdiffeq("bosh3", 1e-9, 1e-11)])
def test_torchdiffeq_agrees_with_adaptive_at_tight_tolerances(solver, device):
    grid = TimeGrid([0.0, 0.5, 0.5, 2.0], observe=[1, 2])
    found, expected = final(solver, grid, device), final(Adaptive(1e-11, 1e-13), grid, device)
    torch.testing.assert_close(found.params, expected.params, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.observed, expected.observed, rtol=1e-5, atol=1e-7)


def test_torchdiffeq_with_tasks_agrees_with_adaptive(device):
    speed = torch.tensor([0.5, 1.0, 2.0], device=device)
    found, expected = (
        optimizer(solver).solve(start(device), speed, TimeGrid.uniform(2.0, 3), tasks=True).params
        for solver in (DormandPrince(1e-10, 1e-12), Adaptive(1e-11, 1e-13))
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
