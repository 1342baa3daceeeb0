"""Continuous adjoints converge at their order to the gradient of the flow."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from support.continuous import (
    FIELDS,
    METHODS,
    network_problem,
    outer_network,
)
from support.params import slow_without

from odeopt import (
    RK4,
    Adaptive,
    ContinuousAdjoint,
    DiscreteAdjoint,
    DormandPrince,
    Euler,
    Every,
    ODEOptimizer,
    TimeGrid,
)
from odeopt.solver import DORMAND_PRINCE, ExplicitRungeKutta, GridSolver

HORIZON = 1.0


FINEST = 256


@functools.cache
def outside_solve(name):
    """States and gradients by scipy's DOP853, on the state and its sensitivities together."""
    u0, batch, outer_batch, hparams = network_problem("cpu")
    h0 = torch.cat([hparams["decay"][None], hparams["center"]])
    velocity = FIELDS[name][1]

    def f(t, u, h):
        return velocity(t, u, (), {"decay": h[0], "center": h[1:]}, batch)

    jacobians = torch.func.jacrev(f, argnums=(1, 2))

    def rhs(t, z):
        t, z = torch.tensor(t), torch.from_numpy(z)
        u, s = z[:6], z[6:].reshape(6, 13)
        j_u, j_h = jacobians(t, u, h0)
        change = j_u @ s
        change[:, 6:] += j_h
        return torch.cat([f(t, u, h0), change.reshape(-1)]).numpy()

    start = torch.cat([u0, torch.eye(6, 13).reshape(-1)]).numpy()
    times = np.linspace(0, HORIZON, FINEST + 1)
    span = {"t_eval": times, "max_step": HORIZON / 20}
    found = solve_ivp(rhs, (0, HORIZON), start, "DOP853", rtol=1e-11, atol=1e-12, **span)
    path = torch.from_numpy(np.ascontiguousarray(found.y.T))
    z = path[-1]
    u, s = z[:6], z[6:].reshape(6, 13)
    lam, direct = torch.func.grad(outer_network, argnums=(0, 2))(u, outer_batch, hparams)
    g = lam @ s
    slope = lam @ f(torch.tensor(HORIZON), u, h0)
    direct = torch.cat([direct["decay"][None], direct["center"]])
    return path[:, :6], {"params": g[:6], "hparams": g[6:] + direct, "dt": slope}


class OutsideStates(GridSolver):
    """Gives scipy's states, so that only the backward sweep is measured."""

    order = 8

    def __init__(self, name):
        self.name = name

    def solve(self, velocity, times, y0):
        every = FINEST // (len(times) - 1)
        return outside_solve(self.name)[0][::every].to(y0.device), 0


def errors(name, adjoint, schedule, device, solver, steps):
    """Relative errors; every step has the gradient of the horizon, since the flow goes on."""
    u0, batch, outer_batch, hparams = network_problem(device)
    opt = ODEOptimizer(FIELDS[name][0], solver, adjoint, schedule)
    grid = TimeGrid.uniform(HORIZON, steps)
    grads = opt.value_and_grad(outer_network)(u0, batch, grid, outer_batch, hparams).grads
    found = {
        "params": grads.params,
        "hparams": torch.cat([grads.hparams["decay"][None], grads.hparams["center"]]),
        "dt": grads.dt,
    }
    expected = outside_solve(name)[1]
    return {
        key: float((found[key].cpu() - value).norm() / value.expand_as(found[key].cpu()).norm())
        for key, value in expected.items()
    }


@functools.cache
def ladder(name, method, device):
    """Errors on meshes of 32, 64, 128 and 256 intervals."""
    adjoint, solver = ContinuousAdjoint(METHODS[method][0]), OutsideStates(name)
    return [errors(name, adjoint, Every(1), device, solver, m) for m in (32, 64, 128, FINEST)]


@pytest.mark.parametrize("name", slow_without(FIELDS, "moving"))
def test_exact_adjoint_of_a_fine_solve_meets_the_outside_gradient(name, device):
    found = errors(name, DiscreteAdjoint(), Every(1), device, RK4(), 200)
    assert max(found["params"], found["hparams"]) < 1e-8


@pytest.mark.parametrize("what", ["params", "hparams", "dt"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", slow_without(FIELDS, "moving"))
def test_order(name, method, what, device):
    found = [step[what] for step in ladder(name, method, device)]
    slopes = -np.diff(np.log2(found))
    assert abs(slopes.mean() - METHODS[method][1]) < 0.15, slopes


@pytest.mark.parametrize("name", slow_without(FIELDS, "moving"))
def test_kept_states_of_a_fine_grid_serve_as_well_as_accurate_ones(name, device):
    fine = errors(name, ContinuousAdjoint(RK4()), Every(16), device, RK4(), 512)
    accurate = ladder(name, "rk4", device)[0]
    assert fine == pytest.approx(accurate, rel=0.05)


@pytest.mark.parametrize("solver", [Adaptive(1e-9, 1e-10), DormandPrince(1e-9, 1e-10)])
@pytest.mark.parametrize("name", FIELDS)
def test_rk4_on_the_grid_of_a_solver_with_error_control(name, solver, device):
    found = errors(name, ContinuousAdjoint(RK4()), Every(1), device, solver, 32)
    assert max(found.values()) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", FIELDS)
def test_exact_adjoint_of_accepted_steps_meets_the_outside_gradient(name, device):
    found = errors(name, DiscreteAdjoint(), Every(1), device, Adaptive(1e-10, 1e-12), 1)
    assert max(found.values()) < 1e-6


def test_interpolated_states_bound_the_order():
    """A fifth-order method goes back no better than along cubics."""
    fifth = ContinuousAdjoint(ExplicitRungeKutta(DORMAND_PRINCE))
    orders = [ContinuousAdjoint(s).order for s in (Euler(), RK4())]
    assert [*orders, fifth.order] == [1, 4, 4]
