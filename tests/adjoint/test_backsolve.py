"""Backsolve, which is not recommended, and the energy of the adjoint."""

from __future__ import annotations

import pytest
import torch
from support.continuous import (
    FIELDS,
    METHODS,
    close,
    network_problem,
    outer_network,
)

from odeopt import (
    RK4,
    BacksolveAdjoint,
    ContinuousAdjoint,
    DiscreteAdjoint,
    DivergenceError,
    Euler,
    GradientFlow,
    ODEOptimizer,
    Safety,
    StabilityError,
    TimeGrid,
)


@pytest.mark.parametrize("name", FIELDS)
def test_backsolve_agrees_over_a_short_horizon(name, device):
    u0, batch, outer_batch, hparams = network_problem(device)
    grid = TimeGrid.uniform(0.5, 50)
    found, expected = (
        ODEOptimizer(FIELDS[name][0], RK4(), adjoint)
        .value_and_grad(outer_network)(u0, batch, grid, outer_batch, hparams)
        .grads
        for adjoint in (BacksolveAdjoint(), DiscreteAdjoint())
    )
    assert close(found.params, expected.params, 1e-6)
    assert close(found.hparams["center"], expected.hparams["center"], 1e-6)
    assert close(found.dt, expected.dt, 1e-6)


def stiff_gradient(adjoint, horizon, device, safety=None):
    """Of a stiff quadratic and a little more; with H alone, always the same, none would see."""
    a = torch.diag(torch.tensor([20.0, 1.0, 0.3, 0.1], device=device))
    random = torch.Generator().manual_seed(0)
    mix, u0, c = (torch.randn(*s, generator=random).to(device) for s in ((4, 4), (4,), (4,)))

    def stiff(params, batch):
        return 0.5 * params @ a @ params + torch.log(torch.cosh(batch @ params)).sum()

    opt = ODEOptimizer(GradientFlow(stiff), RK4(), adjoint, safety=safety)
    grid = TimeGrid.uniform(horizon, 120)
    return opt.value_and_grad(lambda u, c: c @ u)(u0, mix, grid, c).grads.params


@pytest.mark.parametrize(("horizon", "good"), [(0.1, True), (1.0, False)])
def test_backsolve_loses_a_stiff_problem_over_a_long_horizon(horizon, good, device):
    """The states cannot be had back."""
    found = stiff_gradient(BacksolveAdjoint(), horizon, device, Safety.off())
    expected = stiff_gradient(DiscreteAdjoint(), horizon, device)
    error = float((found - expected).norm() / expected.norm())
    assert (error < 1e-6) if good else (error > 0.05)


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_a_lost_backsolve_is_refused(horizon, device):
    with pytest.raises((StabilityError, DivergenceError)):
        stiff_gradient(BacksolveAdjoint(), horizon, device)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_start_is_missed_in_units_of_the_way(scale, device):
    """Euler's method there and back leaves (1 - z^2)^n of a mode, where it went to (1 - z)^n."""

    def gradient(z, steps):
        opt = ODEOptimizer(
            GradientFlow(lambda u, batch: 0.5 * z * u @ u), Euler(), BacksolveAdjoint(Euler())
        )
        start = torch.full((2,), scale, device=device)
        call = opt.value_and_grad(lambda u, batch: u.sum())
        return call(start, start, TimeGrid.from_lr(1.0, steps), start).grads.params

    torch.testing.assert_close(gradient(0.05, 10), torch.full((2,), 0.95**10, device=device))
    with pytest.raises(
        StabilityError, match=r"by 6\.6e-01 of the way"
    ):  # (1 - 0.75^3) / (1 - 0.5^3)
        gradient(0.5, 3)


@pytest.mark.parametrize(
    "adjoint", [DiscreteAdjoint(), *(ContinuousAdjoint(m) for m, _ in METHODS.values())]
)
def test_the_adjoint_of_a_convex_loss_never_grows_backward(adjoint, device):
    """Its norm at state k, from a solve that begins there."""

    def convex(params, batch):
        return torch.log(torch.cosh(batch @ params)).sum()

    u0, c, *batch = torch.randn(8, 5, device=device)
    batch = torch.stack(batch)
    opt = ODEOptimizer(GradientFlow(convex), RK4(), adjoint)
    grid = TimeGrid.from_lr(0.02, 15, observe=list(range(15)))
    starts = opt.solve(u0, batch, grid).observed
    norms = [
        opt.value_and_grad(lambda u, c: c @ u)(
            start, batch, TimeGrid.from_lr(0.02, 15 - k), c
        ).grads.params.norm()
        for k, start in enumerate(starts)
    ]
    assert bool((torch.stack([*norms, c.norm()]).diff() >= 0).all())


@pytest.mark.parametrize(("velocity", "expected"), [(-2.0, -12.0), (float("inf"), 0.0)])
def test_an_interval_of_zero_length_moves_nothing_but_counts_if_it_grew(velocity, expected, device):
    """Its length has the gradient of a step that begins, where the velocity is finite."""
    opt = ODEOptimizer(
        lambda t, u, consts, hparams, batch: u * velocity, Euler(), BacksolveAdjoint(RK4()),
        safety=Safety(probe=False),
    )  # fmt: skip
    u, grid = torch.ones(2, device=device), TimeGrid(torch.tensor([0.0, 0.0], device=device))
    res = opt.value_and_grad(lambda u, b: (3 * u).sum())(u, None, grid, None)
    assert res.grads.params.tolist() == [3.0, 3.0]
    assert res.grads.dt.tolist() == [expected]
