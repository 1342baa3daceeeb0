"""Continuous adjoints on quadratics, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from support.continuous import (
    METHODS,
    close,
)

from odeopt import (
    RK4,
    Adaptive,
    Binomial,
    ContinuousAdjoint,
    DiscreteAdjoint,
    DormandPrince,
    Every,
    Graded,
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)

CURVATURES = {
    "convex": [0.3, 1.0, 2.0, 3.5],
    "indefinite": [-1.2, -0.3, 0.5, 3.0],
    "concave": [-1.5, -1.0, -0.5, -0.1],
}


def matrix(name, device):
    eigenvalues = torch.tensor(CURVATURES[name], device=device)
    q = torch.linalg.qr(torch.randn(4, 4, device=device))[0]
    return q @ torch.diag(eigenvalues) @ q.T


def quadratic(params, batch, hparams):
    """With the matrix in the batch and the linear term in hparams."""
    return hparams["scale"] * 0.5 * params @ batch @ params - hparams["b"] @ params


def linear(params, c, hparams):
    return c @ params


def stability(order, z):
    """The truncated exponential, the stability polynomial of every method here with p stages."""
    return sum(torch.linalg.matrix_power(z, k) / math.factorial(k) for k in range(order + 1))


def quadratic_problem(name, device):
    a = matrix(name, device)
    u0, b, c = torch.randn(3, 4, device=device)
    return u0, a, c, {"scale": torch.ones((), device=device), "b": b}


@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("method", METHODS)
def test_discrete_adjoint_of_a_quadratic_is_a_power_of_the_stability_polynomial(
    method, curvature, schedule, device
):
    u0, a, c, hparams = quadratic_problem(curvature, device)
    solver, order = METHODS[method]
    opt = ODEOptimizer(GradientFlow(quadratic), solver, checkpoints=schedule)
    res = opt.value_and_grad(linear)(u0, a, TimeGrid.uniform(2.0, 10), c, hparams)
    power = torch.linalg.matrix_power(stability(order, -0.2 * a), 10)
    eye = torch.eye(4, device=device)
    assert close(res.grads.params, power @ c, 1e-12)
    assert close(res.grads.hparams["b"], torch.linalg.solve(a, (eye - power) @ c), 1e-12)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_discrete_adjoint_of_dormand_prince_steps_on_a_quadratic(curvature, device):
    u0, a, c, hparams = quadratic_problem(curvature, device)
    solver = Adaptive(rtol=1e6, atol=1e6, first_step=1.0)  # one step per interval
    opt = ODEOptimizer(GradientFlow(quadratic), solver)
    res = opt.value_and_grad(linear)(u0, a, TimeGrid.uniform(2.0, 10), c, hparams)
    assert res.stats.steps == 10
    z = -0.2 * a
    one = stability(5, z) + torch.linalg.matrix_power(z, 6) / 600
    assert close(res.grads.params, torch.linalg.matrix_power(one, 10) @ c, 1e-12)


@pytest.mark.parametrize("schedule", [Every(1), Graded(10)])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("method", METHODS)
def test_continuous_adjoint_of_a_quadratic_is_a_power_of_the_stability_polynomial(
    method, curvature, schedule, device
):
    u0, a, c, hparams = quadratic_problem(curvature, device)
    backward, order = METHODS[method]
    opt = ODEOptimizer(GradientFlow(quadratic), RK4(), ContinuousAdjoint(backward), schedule)
    res = opt.value_and_grad(linear)(u0, a, TimeGrid.uniform(2.0, 10), c, hparams)
    power = torch.linalg.matrix_power(stability(order, -0.2 * a), 10)
    eye = torch.eye(4, device=device)
    assert close(res.grads.params, power @ c, 1e-12)
    assert close(res.grads.hparams["b"], torch.linalg.solve(a, (eye - power) @ c), 1e-12)


@pytest.mark.parametrize("solver", [RK4(), DormandPrince(1e-10, 1e-12)])
@pytest.mark.parametrize("curvature", CURVATURES)
def test_continuous_rk4_gives_the_matrix_exponential(curvature, solver, device):
    u0, a, c, hparams = quadratic_problem(curvature, device)
    opt = ODEOptimizer(GradientFlow(quadratic), solver, ContinuousAdjoint(RK4()))
    res = opt.value_and_grad(linear)(u0, a, TimeGrid.uniform(0.75, 150), c, hparams)
    decay = torch.linalg.matrix_exp(-0.75 * a)
    eye = torch.eye(4, device=device)
    start = torch.linalg.solve(a, hparams["b"])  # the stationary point
    end = start + decay @ (u0 - start)
    assert close(res.grads.params, decay @ c, 1e-8)
    assert close(res.grads.hparams["b"], torch.linalg.solve(a, (eye - decay) @ c), 1e-8)
    slope = hparams["b"] - a @ end
    assert float(abs(res.grads.dt.mean() - c @ slope)) <= 1e-8 * float(c.norm() * slope.norm())


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("method", METHODS)
def test_error_on_a_quadratic_is_within_the_order(method, curvature, device):
    u0, a, c, hparams = quadratic_problem(curvature, device)
    backward, order = METHODS[method]
    opt = ODEOptimizer(GradientFlow(quadratic), RK4(), ContinuousAdjoint(backward), Every(1))
    res = opt.value_and_grad(linear)(u0, a, TimeGrid.uniform(1.0, 25), c, hparams)
    expected = torch.linalg.matrix_exp(-a) @ c
    assert close(res.grads.params, expected, 30 * (0.04 * 3.5) ** order)


@pytest.mark.parametrize("adjoint", [DiscreteAdjoint(), ContinuousAdjoint(RK4())])
def test_observed_states_of_a_quadratic(adjoint, device):
    """Each cotangent travels from its own time: u(0), u(0.3) and u(1) are observed."""
    u0, a, c, hparams = quadratic_problem("indefinite", device)

    def outer(params, c, hparams, observed):
        first, middle, last = observed
        return c @ params + c.flip(0) @ middle + c.sum() * first[0] + 2 * c @ last

    grid = TimeGrid.uniform(1.0, 200, observe=[0, 60, 200])
    opt = ODEOptimizer(GradientFlow(quadratic), RK4(), adjoint)
    res = opt.value_and_grad(outer)(u0, a, grid, c, hparams)
    expected = torch.linalg.matrix_exp(-a) @ (3 * c)
    expected += torch.linalg.matrix_exp(-0.3 * a) @ c.flip(0)
    expected[0] += c.sum()
    assert close(res.grads.params, expected, 1e-8)
