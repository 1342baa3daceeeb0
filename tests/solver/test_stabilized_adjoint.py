"""The exact adjoint of the stabilised solver: against autograd, whatever is kept; and its cost."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.params import slow_but
from support.stabilized import gradient, retrace, stiff, watch_steps

import odeopt
from odeopt import (
    Binomial,
    Density,
    DiscreteAdjoint,
    Every,
    ForwardOverReverse,
    GradientFlow,
    MemoryBudget,
    ODEOptimizer,
    Online,
    StabilizedRK,
    TimeGrid,
    TruncatedAdjoint,
)
from odeopt.adjoint.linearize import ReverseMode
from odeopt.testing.problems import Quadratic, relative_error, smooth_problem
from odeopt.tools.tree import ravel

SCHEDULES = [Every(1), Every(4), Density(3), Binomial(3), Online(5), MemoryBudget("1KiB")]
MODES = [ReverseMode(), ForwardOverReverse()]


SMOOTH = smooth_problem().loss


def stretched(params, batch, hparams):
    """A stiff network: thirty times as steep as the smooth problem."""
    return 30 * SMOOTH(params, batch, hparams)


def reference(steps, problem, device, t1=12.0):
    """The gradients of the recorded steps by autograd: w.r.t. params, hparams, and the horizon."""
    flat, layout = ravel(problem.params, "params")
    flat = flat.detach().clone().requires_grad_()
    hparams = {k: v.detach().clone().requires_grad_() for k, v in problem.hparams.items()}
    horizon = torch.tensor(t1, device=device, requires_grad=True)

    def velocity(t, y):
        loss = lambda u: stretched(layout.unflatten(u), problem.batch, hparams)  # noqa: E731
        return -torch.func.grad(loss)(y)

    end = retrace(steps, velocity, flat, horizon / t1)
    value = problem.loss(layout.unflatten(end), problem.outer_batch, hparams)
    g_flat, g_horizon, *g_hparams = torch.autograd.grad(value, [flat, horizon, *hparams.values()])
    return layout.unflatten(g_flat), g_horizon, dict(zip(hparams, g_hparams, strict=True))


@pytest.mark.parametrize("mode", slow_but(MODES, MODES[0]), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "schedule", slow_but(SCHEDULES, SCHEDULES[0], SCHEDULES[3]), ids=lambda s: type(s).__name__
)
def test_the_gradient_is_autograds_through_the_same_steps(schedule, mode, monkeypatch, device):
    problem, steps = smooth_problem(device), watch_steps(monkeypatch)
    opt = ODEOptimizer(
        GradientFlow(stretched), StabilizedRK(1e-3, 1e-5), DiscreteAdjoint(mode), schedule
    )
    res = opt.value_and_grad(problem.loss)(
        problem.params, problem.batch, TimeGrid.uniform(12.0, 1), problem.outer_batch,
        problem.hparams,
    )  # fmt: skip
    assert len({stages for _, _, stages in steps}) > 3
    g_params, g_horizon, g_hparams = reference(steps, problem, device)
    assert relative_error(res.grads.params, g_params) < 1e-12
    assert relative_error(res.grads.hparams, g_hparams) < 1e-12
    assert relative_error(res.grads.dt.sum(), g_horizon) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("solver", [StabilizedRK(1e-3, 1e-5), StabilizedRK(stages=30)])
@pytest.mark.parametrize("steps", [1, 5])
def test_every_schedule_and_both_paths_give_the_same_bits(solver, steps, device):
    problem, start, direction = stiff(1e3)
    start, grid = start.to(device), TimeGrid.uniform(1.0, steps)
    found = [
        gradient(problem, grid, start, direction, solver, checkpoints=schedule)
        for schedule in SCHEDULES
    ]
    assert all(torch.equal(res.grads.params, found[0].grads.params) for res in found)
    assert all(torch.equal(res.grads.dt, found[0].grads.dt) for res in found)
    params = start.clone().requires_grad_()
    for schedule in (Every(1), Binomial(3)):
        opt = ODEOptimizer(GradientFlow(problem.loss), solver, checkpoints=schedule)
        sol = opt.solve(params, problem.center.to(device), grid)
        (own,) = torch.autograd.grad(sol.params @ direction.to(device), params)
        assert torch.equal(own, found[0].grads.params)


@pytest.mark.slow
def test_observed_states_and_intervals_of_zero_length(device):
    problem, start, direction = stiff(1e3)
    start, direction, center = (x.to(device) for x in (start, direction, problem.center))
    opt = ODEOptimizer(GradientFlow(problem.loss), StabilizedRK(1e-4, 1e-6))

    def outer(params, batch, observed):
        return params @ direction + 2 * (observed[0] @ direction) + 3 * (observed[1] @ direction)

    times = torch.tensor([0.0, 0.0, 0.01, 0.01, 1.0])
    res = opt.value_and_grad(outer)(start, center, TimeGrid(times, observe=[1, 2]), None)
    at = lambda t: problem.flow_adjoint(direction, t)  # noqa: E731
    assert relative_error(res.grads.params, at(1.0) + 2 * direction + 3 * at(0.01)) < 1e-4
    without = gradient(problem, TimeGrid([0.0, 0.01, 1.0]), start, direction, opt_solver())
    with_zeros = gradient(problem, TimeGrid(times), start, direction, opt_solver())
    assert torch.equal(without.value, with_zeros.value)
    assert torch.equal(without.grads.params, with_zeros.grads.params)
    still = opt.value_and_grad(lambda u, w: u @ w)(
        start, center, TimeGrid([0.0, 0.0, 0.0]), direction
    )
    assert torch.equal(still.grads.params, direction)


def opt_solver():
    return StabilizedRK(1e-4, 1e-6)


class Counting:
    """A stiff loss that counts how often Python calls it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params, batch):
        self.calls += 1
        return 200 * torch.log(torch.cosh(batch @ params)).sum()


@pytest.mark.parametrize("compiled", [None, "trace"])
@pytest.mark.parametrize("tasks", slow_but([False, True], False))
@pytest.mark.parametrize("schedule", [Every(1), Binomial(3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("mode", MODES, ids=lambda m: type(m).__name__)
def test_one_product_per_stage_and_every_gradient_is_counted(
    schedule, mode, tasks, compiled, monkeypatch, device
):
    loss, steps = Counting(), watch_steps(monkeypatch)
    opt = ODEOptimizer(
        GradientFlow(loss), StabilizedRK(1e-3, 1e-5), DiscreteAdjoint(mode), schedule,
        safety=odeopt.Safety(probe=False), compile=compiled,
    )  # fmt: skip
    batch = torch.randn((3, 2, 2) if tasks else (2, 2), device=device)
    stats = opt.value_and_grad(lambda u, b: u.square().sum(), tasks=tasks)(
        torch.tensor([0.8, -1.1], device=device), batch, TimeGrid.uniform(1.0, 1), batch
    ).stats
    stages = [s for _, _, s in steps]
    assert stats.steps == len(steps) > 4
    assert stats.hvps == sum(stages)
    assert stats.gradient_evaluations > sum(stages)
    if compiled is None:
        assert loss.calls == stats.gradient_evaluations + stats.hvps
    else:  # one kernel each for the velocity, its pullback and the first step size
        assert stats.compile_misses == 3


def test_the_truncated_adjoint_counts_the_stages_of_its_steps(monkeypatch, device):
    problem, start, direction = stiff(1e3)
    steps, grid = watch_steps(monkeypatch), TimeGrid.uniform(1.0, 1)
    adjoint = TruncatedAdjoint(4)
    res = gradient(problem, grid, start.to(device), direction, opt_solver(), adjoint=adjoint)
    assert res.stats.hvps == sum(stages for _, _, stages in steps[-4:])
    assert res.stats.stored_states == 4


@pytest.mark.parametrize("solver", [StabilizedRK(1e-3, 1e-5), StabilizedRK(stages=12)])
@pytest.mark.parametrize("tasks", slow_but([False, True], True))
def test_traced_kernels_give_the_same_gradient(solver, tasks, device):
    problem = smooth_problem(device, tasks=3 if tasks else None)
    grid = TimeGrid.uniform(torch.tensor([2.0, 0.5, 0.0]) if tasks else 2.0, 4)
    found = []
    for compiled in (None, "trace"):
        opt = ODEOptimizer(GradientFlow(stretched), solver, checkpoints=Every(2), compile=compiled)
        grads = opt.value_and_grad(problem.loss, tasks=tasks)(
            problem.params, problem.batch, grid, problem.outer_batch, problem.hparams
        ).grads
        found.append((grads.params, grads.hparams, grads.dt))
    assert relative_error(*found) < 1e-11


@pytest.mark.slow
@given(
    spectrum=st.lists(st.floats(-0.5, 4.0), min_size=1, max_size=6),
    horizon=st.floats(0.0, 3.0),
    tolerance=st.sampled_from([1e-2, 1e-3, 1e-4]),
    seed=st.integers(0, 99),
)
def test_random_quadratics(spectrum, horizon, tolerance, seed):
    eigenvalues = [math.copysign(10 ** abs(x) - 1, x) for x in spectrum]
    problem = Quadratic.from_spectrum(eigenvalues, seed)
    random = torch.Generator().manual_seed(seed)
    start, direction = (torch.randn(len(spectrum), generator=random) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        steps = watch_steps(patch)
        solver = StabilizedRK(tolerance, tolerance)
        res = gradient(problem, TimeGrid.uniform(horizon, 1), start, direction, solver)
    params = start.clone().requires_grad_()
    slope = lambda t, u: -(u - problem.center) @ problem.matrix  # noqa: E731
    (own,) = torch.autograd.grad(retrace(steps, slope, params) @ direction, params)
    assert relative_error(res.grads.params, own) < 1e-11
    exact = problem.flow_adjoint(direction, horizon)
    scale = max(1.0, float(exact.norm()), float(problem.flow(start, horizon).norm()))
    assert float((res.grads.params - exact).norm()) < 30 * tolerance * scale
