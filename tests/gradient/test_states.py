"""Whole states: readout, warm starts."""

from __future__ import annotations

import pytest
import torch
from support.tasks import (
    STEPS,
    TASKS,
    assert_close,
    at,
    inner,
    outer,
    problem,
    requiring_grad,
)
from torch.utils import _pytree as pytree

import odeopt
from odeopt import (
    RK4,
    Binomial,
    Euler,
    GradientField,
    GradientFlow,
    HeavyBall,
    Midpoint,
    ODEOptimizer,
    RegularizedFlow,
    TimeGrid,
)
from odeopt.testing import smooth_problem
from odeopt.tools import tree


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


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_warm_start_of_sgd_keeps_its_momentum(nesterov, device):
    params, batch, _, hparams = problem(device)
    opt = ODEOptimizer(odeopt.SGD(inner, momentum=0.9, nesterov=nesterov))
    whole = opt.solve(params, batch, TimeGrid.from_lr(0.1, 6), hparams, tasks=True)
    half = opt.solve(params, batch, TimeGrid.from_lr(0.1, 3), hparams, tasks=True)
    rest = opt.solve(params, batch, TimeGrid.from_lr(0.1, 3), hparams, tasks=True, state=half.state)
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


def test_the_initial_state_is_made_once(device):
    class Counting(GradientField):
        calls = 0

        def init(self, params, hparams):
            Counting.calls += 1
            return params, ()

        def potential(self, t, state, consts, hparams, batch):
            return own.loss(state, batch, hparams)

    own = smooth_problem(device)
    opt = ODEOptimizer(Counting())
    grid = TimeGrid.from_lr(0.1, 3)
    opt.value_and_grad(own.loss)(own.params, own.batch, grid, own.outer_batch, own.hparams)
    assert Counting.calls == 1


def test_a_warm_state_may_require_grad_though_it_gets_none(device):
    own = smooth_problem(device)
    opt = ODEOptimizer(GradientFlow(own.loss))
    warm = tree.map_tensors(lambda leaf: (leaf + 0.1).requires_grad_(), own.params)
    args = (own.params, own.batch, TimeGrid.from_lr(0.1, 3), own.outer_batch)
    found = opt.value_and_grad(own.loss)(*args, own.hparams, warm)
    plain = tree.map_tensors(torch.Tensor.detach, warm)
    expected = opt.value_and_grad(own.loss)(*args, own.hparams, plain)
    assert torch.equal(found.value, expected.value)
