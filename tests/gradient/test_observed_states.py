"""States on the way that the outer loss looks at."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    ALL,
    STEPS,
    TASKS,
    assert_close,
    at,
    inner,
    mean,
    optimizer,
    outer,
    problem,
    requiring_grad,
    stack,
)
from torch.utils import _pytree as pytree

from odeopt import (
    Binomial,
    Every,
    Graded,
    GradientFlow,
    Midpoint,
    ODEOptimizer,
    TimeGrid,
    TruncatedAdjoint,
)

OBSERVE = [(0,), (STEPS,), (3,), (0, 2, STEPS), (5, 1, 0)]


def running(params, batch, hparams, observed):
    """A cost that weights the observed states differently."""
    total = outer(params, batch, hparams)
    for index, state in enumerate(observed):
        total = total + (index + 2) * (batch @ state["w"]).cos().mean() + state["v"].sum()
    return total


def unrolled(params, hparams, batch, outer_batch, dts, observe):
    """By Midpoint and autograd."""
    velocity = torch.func.grad(inner)
    move = lambda u, dt, k: pytree.tree_map(lambda x, g: x - dt * g, u, k)  # noqa: E731
    states = [params]
    for dt in dts:
        u = states[-1]
        half = move(u, dt / 2, velocity(u, batch, hparams))
        states.append(move(u, dt, velocity(half, batch, hparams)))
    return running(states[-1], outer_batch, hparams, [states[k] for k in observe])


def unrolled_gradients(params, hparams, batch, outer_batch, dts, observe):
    leaves = requiring_grad((params, hparams, batch, dts))
    value = unrolled(*leaves[:3], outer_batch, leaves[3], observe)
    flat, spec = pytree.tree_flatten(leaves)
    found = torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True)
    return value.detach(), pytree.tree_unflatten(list(found), spec)


@pytest.mark.parametrize("observe", OBSERVE, ids=str)
@pytest.mark.parametrize("schedule", [Every(1), Every(4), Binomial(2)])
def test_observed_states_equal_autograd(observe, schedule, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch = requiring_grad(at(batch, 0)), outer_batch[0]
    dts = torch.linspace(0.05, 0.15, STEPS, device=device)
    opt = ODEOptimizer(GradientFlow(inner), Midpoint(), checkpoints=schedule)
    grid = TimeGrid.from_lr(dts, observe=observe)
    res = opt.value_and_grad(running)(params, batch, grid, outer_batch, hparams)
    value, expected = unrolled_gradients(params, hparams, batch, outer_batch, dts, observe)
    assert_close(res.value, value)
    found = (res.grads.params, res.grads.hparams, res.grads.batch, res.grads.dt)
    assert_close(found, expected)


@pytest.mark.parametrize("observe", OBSERVE, ids=str)
@pytest.mark.parametrize("schedule", [Every(1), Every(4), Binomial(2)])
def test_observed_states_of_a_solve_equal_autograd(observe, schedule, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch = at(batch, 0), outer_batch[0]
    dts = torch.linspace(0.05, 0.15, STEPS, device=device)
    leaves = requiring_grad((params, hparams, batch, dts))
    opt = ODEOptimizer(GradientFlow(inner), Midpoint(), checkpoints=schedule)
    sol = opt.solve(leaves[0], leaves[2], TimeGrid.from_lr(leaves[3], observe=observe), leaves[1])
    running(sol.params, outer_batch, leaves[1], sol.observed).backward()
    _, expected = unrolled_gradients(params, hparams, batch, outer_batch, dts, observe)
    assert_close(pytree.tree_map(lambda leaf: leaf.grad, leaves), expected)


@pytest.mark.parametrize("observe", OBSERVE, ids=str)
@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
def test_observed_states_of_tasks_equal_autograd(observe, schedule, device):
    params, batch, outer_batch, hparams = problem(device)
    dts = torch.rand(TASKS, STEPS, device=device) / 5
    opt = ODEOptimizer(GradientFlow(inner), Midpoint(), checkpoints=schedule)
    grid = TimeGrid.from_lr(dts, observe=observe)
    res = opt.value_and_grad(running, tasks=True)(
        params, requiring_grad(batch), grid, outer_batch, hparams
    )
    alone = [
        unrolled_gradients(params, hparams, at(batch, k), outer_batch[k], dts[k], observe)
        for k in range(TASKS)
    ]
    values, grads = zip(*alone, strict=True)
    assert_close(res.values, torch.stack(values))
    assert_close(res.grads.params, mean([g[0] for g in grads]))
    assert_close(res.grads.hparams, mean([g[1] for g in grads]))
    assert_close(res.grads.batch, stack([g[2] for g in grads]))
    assert_close(res.grads.dt, torch.stack([g[3] for g in grads]))


@pytest.mark.parametrize("name", ALL)
def test_observed_states_on_both_paths(name, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer(name), TimeGrid.uniform(0.6, STEPS, observe=[4, 0, 2])
    res = opt.value_and_grad(running, tasks=True)(params, batch, grid, outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    sol = opt.solve(leaves[0], batch, grid, leaves[1], tasks=True)
    start = {"w": leaves[0]["w"].expand(TASKS, 2, 2), "v": leaves[0]["v"].expand(TASKS, 2)}
    assert_close(sol.observed[1], start)
    over_tasks = torch.func.vmap(running, in_dims=(0, 0, None, 0))
    over_tasks(sol.params, outer_batch, leaves[1], sol.observed).mean().backward()
    found = pytree.tree_map(lambda leaf: leaf.grad, leaves)
    assert_close(found, (res.grads.params, res.grads.hparams))


@pytest.mark.parametrize("schedule", [Every(1), Graded(3), Binomial(2)])
def test_truncation_counts_early_observed_states_as_the_start(schedule, device):
    """What lies before the last steps is the identity, observed or not."""
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch = at(batch, 0), outer_batch[0]
    dts = torch.full((STEPS,), 0.1, device=device)
    opt = ODEOptimizer(GradientFlow(inner), Midpoint(), TruncatedAdjoint(2), schedule)
    grid = TimeGrid.from_lr(dts, observe=[1, 5])
    res = opt.value_and_grad(running)(params, batch, grid, outer_batch, hparams)
    sol = opt.solve(params, batch, TimeGrid.from_lr(dts, observe=[1, 4]), hparams)
    early, middle = sol.observed

    def rest(early, middle):
        velocity = torch.func.grad(inner)
        states = [middle]
        for dt in dts[4:]:
            u = states[-1]
            g = velocity(u, batch, hparams)
            half = pytree.tree_map(lambda x, g, dt=dt: x - dt / 2 * g, u, g)
            g = velocity(half, batch, hparams)
            states.append(pytree.tree_map(lambda x, g, dt=dt: x - dt * g, u, g))
        return running(states[-1], outer_batch, hparams, [early, states[1]])

    grads = torch.func.grad(rest, argnums=(0, 1))(early, middle)
    assert_close(res.grads.params, pytree.tree_map(torch.add, *grads))
