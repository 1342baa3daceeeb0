"""Fixed steps with stretched regions of stability: polynomial, order, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odeopt import (
    Chebyshev2,
    Chebyshev3,
    CompatibilityError,
    GradientFlow,
    HeavyBall,
    ODEOptimizer,
    TimeGrid,
)

POLYNOMIALS = {
    "chebyshev-2": (Chebyshev2(), [1 / 15, 1 / 2, 1, 1], 0.77),
    "chebyshev-3": (Chebyshev3(), [1 / 50, 1 / 6, 1 / 2, 1, 1], 0.56),
}
START = torch.tensor([0.8, -1.1, 0.4], dtype=torch.float64)
TOTAL = 1.5


def loss(params, scale):
    """Not separable, with a Hessian that changes on the way; no saddle in reach."""
    a, b, c = params
    return scale * ((a * b - c).square() + torch.cosh(a + 2 * c) + b.pow(4) / 4)


def decay(params, rate):
    return rate * params.square().sum() / 2


def end(solver, steps):
    grid = TimeGrid.uniform(t1=TOTAL, steps=steps)
    return ODEOptimizer(GradientFlow(loss), solver).solve(START, torch.tensor(1.0), grid).params


def flow():
    def rhs(t, y):
        return -torch.func.grad(loss)(torch.from_numpy(y), 1.0).numpy()

    found = solve_ivp(rhs, (0, TOTAL), START.numpy(), "DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(found.y[:, -1])


@pytest.mark.parametrize(("solver", "polynomial", "inside"), POLYNOMIALS.values(), ids=POLYNOMIALS)
def test_stability_polynomial(solver, polynomial, inside):
    optimizer = ODEOptimizer(GradientFlow(decay), solver)
    z = np.linspace(0.01, solver.stability_limit + 0.2, 200)
    one, grid = torch.ones(1, dtype=torch.float64), TimeGrid.from_lr(1.0, 1)
    found = [optimizer.solve(one, torch.tensor(rate), grid).params.item() for rate in z]
    np.testing.assert_allclose(found, np.polyval(polynomial, -z), rtol=1e-12, atol=1e-12)
    within = z <= solver.stability_limit
    assert np.abs(found)[within].max() <= 1
    assert np.abs(found)[~within].max() > 1
    middle = (z > 1) & (z < 0.9 * solver.stability_limit)
    assert np.abs(found)[middle].max() < inside + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [(Chebyshev2(), 2), (Chebyshev3(), 3)])
def test_order_of_convergence(solver, order):
    expected = flow()
    errors = [float((end(solver, steps) - expected).norm()) for steps in (60, 120, 240, 480)]
    slopes = -np.diff(np.log2(errors))
    assert abs(slopes[-1] - order) < 0.1, slopes


@pytest.mark.parametrize("solver", [Chebyshev2(), Chebyshev3()])
def test_other_spectra_are_refused(solver):
    with pytest.raises(CompatibilityError, match="GradientField"):
        ODEOptimizer(HeavyBall(loss, 0.5), solver)
