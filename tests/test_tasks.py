"""Many tasks at once against one at a time, and the same gradient on every path to it."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from odeopt import (
    RK4,
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    Euler,
    Every,
    FirstOrderAdjoint,
    Graded,
    GradientFlow,
    HeavyBall,
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    PIController,
    RegularizedFlow,
    TimeGrid,
    TruncatedAdjoint,
)

TASKS, STEPS, EXACT = 4, 6, 1e-12

CHOICES = {
    "euler": (Euler(), DiscreteAdjoint(), Every(1)),
    "euler-every": (Euler(), DiscreteAdjoint(), Every(4)),
    "midpoint-binomial": (Midpoint(), DiscreteAdjoint(), Binomial(2)),
    "rk4-density": (RK4(), DiscreteAdjoint(), Density(3)),
    "truncated": (Euler(), TruncatedAdjoint(3), Every(2)),
    "first-order": (RK4(), FirstOrderAdjoint(), Every(1)),
    "continuous": (RK4(), ContinuousAdjoint(ModifiedEuler()), Every(2)),
    "continuous-hermite": (RK4(), ContinuousAdjoint(RK4()), Binomial(2)),
    "backsolve": (RK4(), BacksolveAdjoint(), Every(1)),
}
ADAPTIVE = {
    "adaptive": (Adaptive(1e-5, 1e-7), DiscreteAdjoint(), Every(1)),
    "adaptive-binomial": (Adaptive(1e-5, 1e-7), DiscreteAdjoint(), Binomial(2)),
}
ALL = CHOICES | ADAPTIVE


def inner(params, batch, hparams):
    x, y = batch
    prediction = torch.tanh(x @ params["w"]) @ params["v"]
    penalty = (hparams["h"]["decay"] * params["w"].cosh()).sum() + params["v"].pow(4).sum() / 9
    return (prediction - y).square().mean() + penalty


def outer(params, batch, hparams):
    value = (batch @ params["w"]).sin().mean() + params["v"].square().sum()
    return value * hparams["h"]["scale"]


def problem(device):
    """(params, batch, outer_batch, hparams); batches have a leading task dimension."""
    draw = lambda *shape: 0.6 * torch.randn(shape, device=device)  # noqa: E731
    params = {"w": draw(2, 2), "v": draw(2)}
    batch = (draw(TASKS, 5, 2), draw(TASKS, 5))
    hparams = {"h": {"decay": draw(2, 2).abs() / 5, "scale": draw().abs() + 1}}
    return params, batch, draw(TASKS, 3, 2), hparams


def at(tree, task):
    return pytree.tree_map(lambda leaf: leaf[task], tree)


def requiring_grad(tree):
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def assert_close(found, expected, tolerance=EXACT):
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    trees = pytree.tree_map(torch.detach, (found, expected))
    for x, y in zip(*map(pytree.tree_leaves, trees), strict=True):
        assert x.shape == y.shape
        assert float((x - y).abs().max()) <= tolerance * max(float(y.abs().max()), 1e-2)


def mean(trees):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves).mean(0), *trees)


def stack(trees):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def optimizer(name, field=None):
    solver, adjoint, checkpoints = ALL[name]
    return ODEOptimizer(field or GradientFlow(inner), solver, adjoint, checkpoints)


GRIDS = {
    "common": lambda device: TimeGrid.uniform(0.6, STEPS),
    "horizons": lambda device: TimeGrid.uniform(
        torch.tensor([0.6, 0.1, 0.0, 0.9], device=device), STEPS
    ),
    "learning rates": lambda device: TimeGrid.from_lr(
        torch.rand(TASKS, STEPS, device=device).where(
            torch.arange(STEPS, device=device) < torch.tensor([[6], [3], [0], [5]], device=device),
            0.0,
        )
        / 5
    ),
}


def row(grid, task):
    if grid.tasks is None:
        return grid
    return TimeGrid(grid.times[task], grid.observe, dt=grid.dt[task])


# --- tasks are separate ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ALL)
def test_tasks_equal_a_loop_over_them(name, grid, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, grid = requiring_grad(batch), GRIDS[grid](device)
    opt = optimizer(name)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    alone = [
        opt.value_and_grad(outer)(
            params, requiring_grad(at(batch, k)), row(grid, k), outer_batch[k], hparams
        )
        for k in range(TASKS)
    ]
    tolerance = EXACT if name in CHOICES else 1e-10
    assert_close(res.values, torch.stack([one.value for one in alone]), tolerance)
    assert_close(res.value, res.values.mean(), tolerance)
    assert_close(res.grads.params, mean([one.grads.params for one in alone]), tolerance)
    assert_close(res.grads.hparams, mean([one.grads.hparams for one in alone]), tolerance)
    assert_close(res.grads.dt, torch.stack([one.grads.dt for one in alone]), tolerance)
    assert_close(res.grads.batch, stack([one.grads.batch for one in alone]), tolerance)


@pytest.mark.parametrize("name", ALL)
def test_order_of_the_tasks_does_not_matter(name, device):
    params, batch, outer_batch, hparams = problem(device)
    grid = TimeGrid.uniform(torch.tensor([0.6, 0.1, 0.3, 0.9], device=device), STEPS)
    order = torch.tensor([2, 0, 3, 1], device=device)
    opt = optimizer(name)
    run = opt.value_and_grad(outer, tasks=True)
    res = run(params, batch, grid, outer_batch, hparams)
    moved = run(
        params, at(batch, order), TimeGrid(grid.times[order], dt=grid.dt[order]),
        outer_batch[order], hparams,
    )  # fmt: skip
    assert_close(moved.values, res.values[order])
    assert_close(moved.grads.dt, res.grads.dt[order])
    assert_close(moved.grads.params, res.grads.params)
    assert_close(moved.grads.hparams, res.grads.hparams)


def test_one_task_is_a_mean_over_one(device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    found = opt.value_and_grad(outer, tasks=True)(
        params, at(batch, slice(0, 1)), grid, outer_batch[:1], hparams
    )
    expected = opt.value_and_grad(outer)(params, at(batch, 0), grid, outer_batch[0], hparams)
    assert_close(found.grads.params, expected.grads.params)
    assert_close(found.grads.dt, expected.grads.dt[None])


@pytest.mark.parametrize("solver", [Adaptive(1e-6, 1e-8, controller=PIController(per_task=False))])
def test_common_steps_give_the_gradient_of_each_task(solver, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = ODEOptimizer(GradientFlow(inner), solver), TimeGrid.uniform(0.9, 2)
    fine = ODEOptimizer(GradientFlow(inner), Adaptive(1e-10, 1e-12))
    found, expected = (
        o.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
        for o in (opt, fine)
    )
    assert_close(found.grads.params, expected.grads.params, 1e-4)
    assert_close(found.grads.hparams, expected.grads.hparams, 1e-4)


# --- paths -----------------------------------------------------------------------------------


def objective(opt, grid):
    """One task's outer loss after a solve."""

    def value(params, hparams, batch, outer_batch):
        return outer(opt.solve(params, batch, grid, hparams).params, outer_batch, hparams)

    return value


OVER_TASKS = {"in_dims": (None, None, 0, 0)}


@pytest.mark.parametrize("name", CHOICES)
def test_vmap_of_grad_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(
        params, requiring_grad(batch), grid, outer_batch, hparams
    )
    per_task = torch.func.vmap(torch.func.grad(objective(opt, grid), (0, 1, 2)), **OVER_TASKS)
    g_params, g_hparams, g_batch = per_task(params, hparams, batch, outer_batch)
    assert_close(pytree.tree_map(lambda g: g.mean(0), g_params), res.grads.params)
    assert_close(pytree.tree_map(lambda g: g.mean(0), g_hparams), res.grads.hparams)
    assert_close(g_batch, res.grads.batch)


@pytest.mark.parametrize("name", CHOICES)
def test_grad_of_vmap_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    opt, grid = optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(
        params, requiring_grad(batch), grid, outer_batch, hparams
    )
    one = objective(opt, grid)
    total = lambda *args: torch.func.vmap(one, **OVER_TASKS)(*args).sum()  # noqa: E731
    grads = torch.func.grad(total, (0, 1, 2))(params, hparams, batch, outer_batch)
    shared = pytree.tree_map(lambda g: g / TASKS, grads[:2])
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(grads[2], res.grads.batch)


@pytest.mark.parametrize("name", CHOICES)
def test_backward_of_vmap_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, opt, grid = requiring_grad(batch), optimizer(name), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    values = torch.func.vmap(objective(opt, grid), **OVER_TASKS)(*leaves, batch, outer_batch)
    values.sum().backward()
    shared = pytree.tree_map(lambda leaf: leaf.grad / TASKS, leaves)
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(pytree.tree_map(lambda leaf: leaf.grad, batch), res.grads.batch)


@pytest.mark.parametrize("name", ["euler", "midpoint-binomial", "continuous"])
def test_hparams_of_each_task_under_vmap(name, device):
    """Params and hparams with a task dimension of their own."""
    params, batch, outer_batch, hparams = problem(device)
    params, hparams = stack([params] * TASKS), stack([hparams] * TASKS)
    one = objective(optimizer(name), TimeGrid.uniform(0.6, STEPS))
    expected = torch.func.vmap(torch.func.grad(one, (0, 1)))(params, hparams, batch, outer_batch)
    total = lambda *args: torch.func.vmap(one)(*args).sum()  # noqa: E731
    found = torch.func.grad(total, (0, 1))(params, hparams, batch, outer_batch)
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["euler", "rk4-density"])
def test_learning_rates_of_each_task_under_vmap(name, device):
    params, batch, outer_batch, hparams = problem(device)
    lr = torch.rand(TASKS, STEPS, device=device) / 5
    opt = optimizer(name)
    res = opt.value_and_grad(outer, tasks=True)(
        params, batch, TimeGrid.from_lr(lr), outer_batch, hparams
    )

    def value(lr, batch, outer_batch):
        sol = opt.solve(params, batch, TimeGrid.from_lr(lr), hparams)
        return outer(sol.params, outer_batch, hparams)

    assert_close(torch.func.vmap(torch.func.grad(value))(lr, batch, outer_batch), res.grads.dt)


@pytest.mark.parametrize("name", ALL)
def test_solve_with_tasks_gives_the_same_gradient(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, opt = requiring_grad(batch), optimizer(name)
    t1 = torch.tensor([0.6, 0.1, 0.3, 0.9], device=device, requires_grad=True)
    grid = TimeGrid.uniform(t1, STEPS)
    res = opt.value_and_grad(outer, tasks=True)(params, batch, grid, outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    sol = opt.solve(leaves[0], batch, grid, leaves[1], tasks=True)
    values = torch.func.vmap(outer, in_dims=(0, 0, None))(sol.params, outer_batch, leaves[1])
    values.sum().backward()
    per_task = pytree.tree_map(lambda leaf: leaf.grad, (batch, t1))
    shared = pytree.tree_map(lambda leaf: leaf.grad / TASKS, leaves)
    assert_close(values.detach(), res.values)
    assert_close(shared, (res.grads.params, res.grads.hparams))
    assert_close(per_task, (res.grads.batch, res.grads.dt.mean(-1)))


@pytest.mark.parametrize("name", ALL)
def test_backward_through_one_solve_equals_value_and_grad(name, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch, opt = requiring_grad(at(batch, 1)), outer_batch[1], optimizer(name)
    lr = torch.linspace(0.05, 0.15, STEPS, device=device).requires_grad_()
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    leaves = requiring_grad((params, hparams))
    sol = opt.solve(leaves[0], batch, TimeGrid.from_lr(lr), leaves[1])
    outer(sol.params, outer_batch, leaves[1]).backward()
    found = pytree.tree_map(lambda leaf: leaf.grad, (*leaves, batch, lr))
    assert_close(found, (res.grads.params, res.grads.hparams, res.grads.batch, res.grads.dt))


# --- frozen tasks ----------------------------------------------------------------------------


def rooted(params, batch, hparams):
    """Its gradient is not finite where the batch is zero."""
    return hparams["a"] * ((batch * params).square().sum().sqrt() + (batch - params).cosh().sum())


def rooted_outer(params, batch, hparams):
    return (batch * params).sum() * hparams["a"]


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_task_survives_a_velocity_that_is_not_finite(name, device):
    params = torch.tensor([0.5, -0.3], device=device)
    batch = torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.3, -0.7]], device=device).requires_grad_()
    hparams = {"a": torch.tensor(0.7, device=device)}
    grid = TimeGrid.uniform(torch.tensor([0.5, 0.0, 0.4], device=device), STEPS)
    opt = optimizer(name, GradientFlow(rooted))
    run = opt.value_and_grad(rooted_outer, tasks=True)
    outer_batch = torch.ones(3, 2, device=device)
    res = run(params, batch, grid, outer_batch, hparams)
    rest = [0, 2]
    expected = run(
        params, batch[rest].detach().requires_grad_(),
        TimeGrid(grid.times[rest], dt=grid.dt[rest]), outer_batch[rest], hparams,
    )  # fmt: skip
    assert torch.equal(res.values[1], rooted_outer(params, outer_batch[1], hparams))
    assert_close(res.values[rest], expected.values)
    assert_close(res.grads.params, (2 * expected.grads.params + hparams["a"]) / 3)
    assert_close(res.grads.batch[rest], expected.grads.batch)
    if name != "first-order":
        assert not res.grads.batch[1].any()
        assert_close(res.grads.dt[rest], expected.grads.dt)
    direct = params.sum()
    assert_close(res.grads.hparams["a"], (2 * expected.grads.hparams["a"] + direct) / 3)


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_task_keeps_its_params_exactly(name, device):
    params, batch, _, hparams = problem(device)
    grid = GRIDS["horizons"](device)
    sol = optimizer(name).solve(params, batch, grid, hparams, tasks=True)
    assert torch.equal(sol.params["w"][2], params["w"])
    assert not torch.equal(sol.params["w"][0], params["w"])


@pytest.mark.parametrize("name", ["euler", "rk4-density", "continuous", "adaptive"])
def test_a_solve_through_a_frozen_task_has_finite_gradients(name, device):
    params = torch.tensor([0.5, -0.3], device=device, requires_grad=True)
    batch = torch.tensor([[1.0, 0.5], [0.0, 0.0]], device=device, requires_grad=True)
    hparams = {"a": torch.tensor(0.7, device=device, requires_grad=True)}
    grid = TimeGrid.uniform(torch.tensor([0.5, 0.0], device=device), STEPS)
    opt = optimizer(name, GradientFlow(rooted))
    opt.solve(params, batch, grid, hparams, tasks=True).params.sum().backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in (params, batch, hparams["a"]))


# --- observed states -------------------------------------------------------------------------

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


# --- states ----------------------------------------------------------------------------------


def heavy():
    return HeavyBall(inner, damping=lambda hp: hp["h"]["scale"])


@pytest.mark.parametrize("solver", [Euler(), RK4()])
def test_heavy_ball_equals_autograd(solver, device):
    params, batch, outer_batch, hparams = problem(device)
    batch, outer_batch = at(batch, 0), outer_batch[0]
    opt = ODEOptimizer(heavy(), solver, checkpoints=Binomial(2))
    res = opt.value_and_grad(outer)(
        params, batch, TimeGrid.from_lr(0.2, STEPS), outer_batch, hparams
    )

    def velocity(state, hparams):
        u, v = state
        gradient = torch.func.grad(inner)(u, batch, hparams)
        force = pytree.tree_map(lambda g, w: -g - hparams["h"]["scale"] * w, gradient, v)
        return v, force

    def end(params, hparams):
        move = lambda y, k, dt: pytree.tree_map(lambda x, d: x + dt * d, y, k)  # noqa: E731
        y = (params, pytree.tree_map(torch.zeros_like, params))
        for _ in range(STEPS):
            first = velocity(y, hparams)
            if isinstance(solver, Euler):
                y = move(y, first, 0.2)
                continue
            second = velocity(move(y, first, 0.1), hparams)
            third = velocity(move(y, second, 0.1), hparams)
            fourth = velocity(move(y, third, 0.2), hparams)
            for k, weight in ((first, 1), (second, 2), (third, 2), (fourth, 1)):
                y = move(y, k, 0.2 * weight / 6)
        return outer(y[0], outer_batch, hparams)

    grads, value = torch.func.grad_and_value(end, argnums=(0, 1))(params, hparams)
    assert_close(res.value, value)
    assert_close((res.grads.params, res.grads.hparams), grads)


def test_solution_holds_readout_and_state(device):
    params, batch, _, hparams = problem(device)
    sol = ODEOptimizer(heavy(), RK4()).solve(
        params, batch, TimeGrid.uniform(0.6, STEPS, observe=[2]), hparams, tasks=True
    )
    position, velocity = sol.state
    assert torch.equal(sol.params["w"], position["w"])
    assert velocity["w"].shape == (TASKS, 2, 2)
    assert bool(velocity["w"].any())
    assert len(sol.observed[0]) == 2  # a whole state


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("field", [heavy, lambda: GradientFlow(inner)], ids=["heavy", "flow"])
def test_a_warm_start_continues_the_solve(field, tasks, device):
    params, batch, _, hparams = problem(device)
    batch = batch if tasks else at(batch, 0)
    opt, lr = ODEOptimizer(field(), RK4()), torch.linspace(0.05, 0.2, STEPS, device=device)
    whole = opt.solve(params, batch, TimeGrid.from_lr(lr), hparams, tasks=tasks)
    half = opt.solve(params, batch, TimeGrid.from_lr(lr[:3]), hparams, tasks=tasks)
    rest = opt.solve(
        params, batch, TimeGrid.from_lr(lr[3:]), hparams, tasks=tasks, state=half.state
    )
    assert_close(rest.state, whole.state)


@pytest.mark.parametrize("tasks", [False, True])
def test_gradients_flow_through_a_warm_start(tasks, device):
    params, batch, _, hparams = problem(device)
    batch = batch if tasks else at(batch, 0)
    opt = ODEOptimizer(heavy(), RK4(), checkpoints=Binomial(2))
    lr = torch.linspace(0.05, 0.2, STEPS, device=device)

    def gradients(*pieces):
        leaves, state = requiring_grad((params, hparams)), None
        for piece in pieces:
            grid = TimeGrid.from_lr(piece)
            state = opt.solve(leaves[0], batch, grid, leaves[1], tasks=tasks, state=state).state
        (state[0]["w"].sin().sum() + state[1]["v"].square().sum()).backward()
        return pytree.tree_map(lambda leaf: leaf.grad, leaves)

    assert_close(gradients(lr[:2], lr[2:]), gradients(lr))


@pytest.mark.parametrize("tasks", [False, True])
def test_value_and_grad_of_a_warm_start_leaves_the_state_out(tasks, device):
    """Only the centre of the proximal term is left to carry the gradient to params."""
    params, batch, outer_batch, hparams = problem(device)
    if not tasks:
        batch, outer_batch = at(batch, 0), outer_batch[0]
    opt = ODEOptimizer(RegularizedFlow(inner, strength=0.8), Midpoint())
    grid = TimeGrid.uniform(0.4, 4)
    state = opt.solve(params, batch, grid, hparams, tasks=tasks).state
    res = opt.value_and_grad(outer, tasks=tasks)(
        params, batch, grid, outer_batch, hparams, state=state
    )
    leaf = requiring_grad(params)
    sol = opt.solve(leaf, batch, grid, hparams, tasks=tasks, state=state)
    if tasks:
        value = torch.func.vmap(outer, in_dims=(0, 0, None))(sol.params, outer_batch, hparams)
    else:
        value = outer(sol.params, outer_batch, hparams)
    value.mean().backward()
    assert_close(res.value, value.mean().detach())
    assert_close(res.grads.params, pytree.tree_map(lambda u: u.grad, leaf))
    assert bool(res.grads.params["w"].any())


# --- aux -------------------------------------------------------------------------------------


def outer_with_aux(params, batch, hparams):
    prediction = batch @ params["w"]
    return outer(params, batch, hparams), {"prediction": prediction, "norm": params["v"].norm()}


@pytest.mark.parametrize("tasks", [False, True])
def test_aux_of_the_outer_loss(tasks, device):
    params, batch, outer_batch, hparams = problem(device)
    if not tasks:
        batch, outer_batch = at(batch, 0), outer_batch[0]
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer_with_aux, tasks=tasks, has_aux=True)(
        params, batch, grid, outer_batch, hparams
    )
    plain = opt.value_and_grad(outer, tasks=tasks)(params, batch, grid, outer_batch, hparams)
    end = opt.solve(params, batch, grid, hparams, tasks=tasks).params
    assert_close(res.aux["prediction"], outer_batch @ end["w"])
    assert_close(res.aux["norm"], end["v"].norm(dim=-1))
    assert_close(res.grads.params, plain.grads.params)
    assert plain.aux is None
    assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(res.aux))


@pytest.mark.parametrize("tasks", [False, True])
def test_aux_of_the_inner_loss_is_dropped(tasks, device):
    params, batch, outer_batch, hparams = problem(device)
    if not tasks:
        batch, outer_batch = at(batch, 0), outer_batch[0]
    with_aux = lambda *args: (inner(*args), args[0])  # noqa: E731
    grid = TimeGrid.uniform(0.6, STEPS)
    found, expected = (
        ODEOptimizer(field, RK4()).value_and_grad(outer, tasks=tasks)(
            params, batch, grid, outer_batch, hparams
        )
        for field in (GradientFlow(with_aux, has_aux=True), GradientFlow(inner))
    )
    assert torch.equal(found.grads.params["w"], expected.grads.params["w"])


def test_a_skipped_task_is_left_out_of_the_means(device):
    params, batch, outer_batch, hparams = problem(device)
    bad = [batch[0].clone(), batch[1].clone()]
    bad[1][2] = torch.inf
    opt, grid = optimizer("euler"), TimeGrid.uniform(0.6, STEPS)
    res = opt.value_and_grad(outer, tasks=True, on_failure="skip")(
        params, tuple(bad), grid, outer_batch, hparams
    )
    rest = [0, 1, 3]
    expected = opt.value_and_grad(outer, tasks=True)(
        params, at(batch, rest), grid, outer_batch[rest], hparams
    )
    assert (res.status != 0).tolist() == [False, False, True, False]
    assert_close(res.value, expected.value)
    assert_close(res.grads.params, expected.grads.params)
    assert_close(res.grads.hparams, expected.grads.hparams)
