"""The continuous adjoints against closed forms, and their orders against an outside integrator."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odeopt import (
    RK4,
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    DivergenceError,
    DormandPrince,
    Euler,
    Every,
    Graded,
    GradientFlow,
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    Safety,
    StabilityError,
    TimeGrid,
)
from odeopt.solver import GridSolver

METHODS = {
    "euler": (Euler(), 1),
    "modified-euler": (ModifiedEuler(), 2),
    "midpoint": (Midpoint(), 2),
    "rk4": (RK4(), 4),
}
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


def close(found, expected, tolerance):
    return float(torch.linalg.vector_norm(found - expected)) <= tolerance * float(
        torch.linalg.vector_norm(expected)
    )


# --- quadratics ------------------------------------------------------------------------------


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


# --- orders ----------------------------------------------------------------------------------


def network(params, batch, hparams):
    """A tanh network with two hidden units; smooth, and of both curvatures."""
    x, y = batch
    w, v = params[:4].reshape(2, 2), params[4:6]
    fit = (torch.tanh(x @ w) @ v - y).square().mean()
    return fit + hparams["decay"] * torch.log(torch.cosh(params - hparams["center"])).sum()


def moving(t, state, consts, hparams, batch):
    """Not a gradient field, and never the same twice."""
    pull = torch.func.grad(network)(state, batch, hparams)
    return -pull * (1 + 0.5 * torch.sin(2 * t)) + 0.3 * torch.cos(t) * state.roll(1)


def still(t, state, consts, hparams, batch):
    return -torch.func.grad(network)(state, batch, hparams)


FIELDS = {"flow": (GradientFlow(network), still), "moving": (moving, moving)}


def outer_network(params, batch, hparams):
    return torch.sin(params @ batch) + params.square().sum() * hparams["decay"]


HORIZON = 1.0
SEED = 7


def network_problem(device):
    random = torch.Generator().manual_seed(SEED)
    draw = lambda *shape: torch.randn(*shape, generator=random).to(device)  # noqa: E731
    batch = (draw(10, 2), draw(10))
    hparams = {"decay": torch.tensor(0.2, device=device), "center": 0.3 * draw(6)}
    return 0.7 * draw(6), batch, 0.5 * draw(6), hparams


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


@pytest.mark.parametrize("name", FIELDS)
def test_exact_adjoint_of_a_fine_solve_meets_the_outside_gradient(name, device):
    found = errors(name, DiscreteAdjoint(), Every(1), device, RK4(), 200)
    assert max(found["params"], found["hparams"]) < 1e-8


@pytest.mark.parametrize("what", ["params", "hparams", "dt"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FIELDS)
def test_order(name, method, what, device):
    found = [step[what] for step in ladder(name, method, device)]
    slopes = -np.diff(np.log2(found))
    assert abs(slopes.mean() - METHODS[method][1]) < 0.15, slopes


@pytest.mark.parametrize("name", FIELDS)
def test_kept_states_of_a_fine_grid_serve_as_well_as_accurate_ones(name, device):
    fine = errors(name, ContinuousAdjoint(RK4()), Every(16), device, RK4(), 512)
    accurate = ladder(name, "rk4", device)[0]
    assert fine == pytest.approx(accurate, rel=0.05)


@pytest.mark.parametrize("solver", [Adaptive(1e-9, 1e-10), DormandPrince(1e-9, 1e-10)])
@pytest.mark.parametrize("name", FIELDS)
def test_rk4_on_the_grid_of_a_solver_with_error_control(name, solver, device):
    found = errors(name, ContinuousAdjoint(RK4()), Every(1), device, solver, 32)
    assert max(found.values()) < 1e-4


@pytest.mark.parametrize("name", FIELDS)
def test_exact_adjoint_of_accepted_steps_meets_the_outside_gradient(name, device):
    found = errors(name, DiscreteAdjoint(), Every(1), device, Adaptive(1e-10, 1e-12), 1)
    assert max(found.values()) < 1e-6


# --- meshes ----------------------------------------------------------------------------------


def results(schedule, method, device, **grid):
    u0, batch, outer_batch, hparams = network_problem(device)
    adjoint = ContinuousAdjoint(METHODS[method][0])
    opt = ODEOptimizer(GradientFlow(network), RK4(), adjoint, schedule)
    outer = lambda params, batch, hparams, observed=(): sum(  # noqa: E731
        (outer_network(u, batch, hparams) for u in observed), outer_network(params, batch, hparams)
    )
    return opt.value_and_grad(outer)(u0, batch, TimeGrid.uniform(1.0, **grid), outer_batch, hparams)


def assert_bitwise(found, expected):
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads.params, expected.grads.params)
    assert torch.equal(found.grads.dt, expected.grads.dt)
    assert torch.equal(found.grads.hparams["decay"], expected.grads.hparams["decay"])


@pytest.mark.parametrize("slots", [1, 3, 40])
@pytest.mark.parametrize("method", METHODS)
def test_binomial_takes_the_whole_grid_for_its_mesh(method, slots, device):
    found = results(Binomial(slots), method, device, steps=12, observe=[0, 7, 12])
    assert_bitwise(found, results(Every(1), method, device, steps=12, observe=[0, 7, 12]))


@pytest.mark.parametrize("method", METHODS)
def test_density_is_the_mesh_of_every(method, device):
    found = results(Density(5), method, device, steps=20)
    assert_bitwise(found, results(Every(4), method, device, steps=20))


@pytest.mark.parametrize("schedule", [Every(4), Density(5), Graded(5)])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_replayed_backward_on_kept_states(method, schedule, device):
    stats = results(schedule, method, device, steps=20).stats
    stages = METHODS[method][0].stages
    assert (stats.stored_states, stats.hvps) == (5, 5 * stages)
    if isinstance(schedule, Graded):  # measures first, then stores
        assert stats.replayed_steps <= 20
    else:
        assert stats.replayed_steps == 0


@pytest.mark.parametrize("schedule", [Every(20), Every(7), Density(1)])
def test_observed_states_become_nodes_of_the_mesh(schedule, device):
    stats = results(schedule, "rk4", device, steps=20, observe=[0, 3, 12, 20]).stats
    nodes = {0, 3, 12} | ({7, 14} if isinstance(schedule, Every) and schedule.k == 7 else set())
    assert stats.hvps == 4 * len(nodes)
    assert stats.stored_states == len(nodes)


def test_a_mesh_of_observed_states_is_the_mesh_of_kept_ones(device):
    found = results(Density(1), "rk4", device, steps=20, observe=[5, 10, 15])
    assert_bitwise(found, results(Every(5), "rk4", device, steps=20, observe=[5, 10, 15]))


def test_graded_beats_uniform_where_the_trajectory_bends_early(device):
    def fast_at_first(t, state, consts, hparams, batch):
        return -batch * torch.tanh(state) * (1 + 30 * torch.exp(-25 * t))

    u0, rates = torch.tensor([2.0, -1.0, 1.5]), torch.tensor([1.0, 0.5, 1.5])
    u0, rates, c = u0.to(device), rates.to(device), torch.tensor([1.0, 1.0, 2.0], device=device)

    def gradient(adjoint, schedule):
        opt = ODEOptimizer(fast_at_first, RK4(), adjoint, schedule)
        grid = TimeGrid.uniform(2.0, 800)
        return opt.value_and_grad(lambda u, c: c @ torch.tanh(u))(u0, rates, grid, c).grads.params

    exact = gradient(DiscreteAdjoint(), Every(1))
    backward = ContinuousAdjoint(ModifiedEuler())
    uniform, graded = (gradient(backward, s) - exact for s in (Density(40), Graded(40)))
    assert float(graded.norm()) < 0.5 * float(uniform.norm())


# --- backsolve, energy -----------------------------------------------------------------------


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
