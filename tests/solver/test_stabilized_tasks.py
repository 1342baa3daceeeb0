"""Tasks together with the stabilised solver: own steps, one number of stages per step."""

from __future__ import annotations

import pytest
import torch
from support.stabilized import retrace, watch_steps

from odeopt import Binomial, Every, GradientFlow, ODEOptimizer, StabilizedRK, TimeGrid
from odeopt.testing.problems import relative_error

SPEEDS = [1.0, 30.0, 400.0]


def loss(params, speed):
    """A bowl that is `speed` times as stiff in its last direction."""
    u, v, w = params
    return 0.5 * (u - 1).square() + (speed * torch.cosh(v + 0.2 * u) + speed.square() * w * w) / 10


def outer(params, weights):
    return torch.sin(params @ weights)


def problem(device, speeds=SPEEDS):
    speed = torch.tensor(speeds, device=device)
    weights = torch.tensor([0.7, -0.4, 1.1], device=device) * torch.ones_like(speed)[:, None]
    return torch.tensor([0.3, -0.8, 0.5], device=device), speed, weights


def solve(device, solver, t1=2.0, speeds=SPEEDS, **choices):
    params, speed, weights = problem(device, speeds)
    grid = TimeGrid.uniform(torch.as_tensor(t1), 1)
    opt = ODEOptimizer(GradientFlow(loss), solver, **choices)
    return opt.value_and_grad(outer, tasks=True)(params, speed.requires_grad_(), grid, weights)


def alone(device, task, t1=2.0, tolerance=1e-3):
    params, speed, weights = problem(device)
    opt = ODEOptimizer(GradientFlow(loss), StabilizedRK(tolerance, tolerance))
    grid = TimeGrid.uniform(t1, 1)
    return opt.value_and_grad(outer)(params, speed[task].requires_grad_(), grid, weights[task])


@pytest.mark.parametrize("schedule", [Every(1), pytest.param(Binomial(3), marks=pytest.mark.slow)])
def test_the_gradient_is_autograds_through_the_same_steps(schedule, monkeypatch, device):
    steps = watch_steps(monkeypatch)
    res = solve(device, StabilizedRK(1e-2, 1e-4), checkpoints=schedule)
    start, speed, weights = problem(device)
    params = start.expand(3, -1).clone().requires_grad_()
    speed.requires_grad_()

    def velocity(t, y):
        slope = torch.func.vmap(torch.func.grad(loss))
        return -slope(y, speed)

    values = torch.stack([outer(*pair) for pair in zip(retrace(steps, velocity, params), weights,
                                                       strict=True)])  # fmt: skip
    g_params, g_speed = torch.autograd.grad(values.sum(), [params, speed])
    assert relative_error(res.values, values.detach()) < 1e-12
    assert relative_error(res.grads.params, g_params.mean(0)) < 1e-12
    assert relative_error(res.grads.batch, g_speed) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("horizons", [[2.0, 2.0, 2.0], [2.0, 0.3, 1.0], [0.0, 1.0, 0.0]])
def test_tasks_are_a_loop_over_them_to_the_tolerance(horizons, device):
    for tolerance in (1e-2, 1e-4):
        res = solve(device, StabilizedRK(tolerance, tolerance), t1=horizons)
        one = [alone(device, k, horizons[k], tolerance) for k in range(3)]
        values = torch.stack([r.value for r in one])
        mean = torch.stack([r.grads.params for r in one]).mean(0)
        assert relative_error(res.values, values) < 20 * tolerance
        assert relative_error(res.grads.params, mean) < 20 * tolerance


def test_equal_tasks_are_exactly_a_loop_over_them(device):
    res = solve(device, StabilizedRK(1e-3, 1e-3), speeds=[30.0, 30.0, 30.0])
    own = alone(device, 1)
    assert relative_error(res.values, own.value.expand(3)) < 1e-12
    assert relative_error(res.grads.params, own.grads.params) < 1e-12
    assert res.stats == own.stats or res.stats.steps == own.stats.steps


@pytest.mark.slow
def test_each_task_has_its_own_steps_and_all_have_the_same_stages(monkeypatch, device):
    steps = watch_steps(monkeypatch)
    solve(device, StabilizedRK(1e-3, 1e-5))
    counts = torch.stack([dt > 0 for _, dt, _ in steps]).sum(0).tolist()
    assert len(set(counts)) == 3
    totals = torch.stack([dt for _, dt, _ in steps]).sum(0)
    assert relative_error(totals, torch.full((3,), 2.0, device=device)) < 1e-12


@pytest.mark.slow
def test_a_task_that_has_stopped_stays_where_it_is(device):
    res = solve(device, StabilizedRK(1e-3, 1e-5), t1=[0.0, 1.0, 1.0])
    start, _, weights = problem(device)
    assert torch.equal(res.values[0], outer(start, weights[0]))
    assert torch.equal(res.grads.batch[0], torch.zeros((), device=device))
