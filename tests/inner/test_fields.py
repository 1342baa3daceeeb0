"""Fields against the same loops written down with autograd."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from odeopt_plugins.nesterov_flow import NesterovFlow
from support.fields import (
    combine,
    loss,
    make_batch,
    make_hparams,
    make_params,
    outer_loss,
    pytree,
    timed,
)

import odeopt
from odeopt.tools import tree

LR, STEPS = 0.15, 6


def loss_with_aux(params, batch, hparams=None):
    return loss(params, batch, hparams), {"anything": "at all"}


def rate(hparams):
    return hparams["rate"]


def grad(params, batch, hparams):
    value = loss(params, batch, hparams)
    gradients = torch.autograd.grad(value, tree.leaves(params), create_graph=True)
    return pytree.tree_unflatten(list(gradients), pytree.tree_structure(params))


def at_rest(params):
    return params, combine(torch.zeros_like, params)


def flow(t, u, start, hp, batch):
    return combine(torch.neg, grad(u, batch, hp))


def decayed(t, u, start, hp, batch):
    return combine(lambda g, x: -g - hp["rate"] * x, grad(u, batch, hp), u)


def pulled_to_start(t, u, start, hp, batch):
    return combine(lambda g, x, c: -g - hp["rate"] * (x - c), grad(u, batch, hp), u, start)


def pulled_to_center(t, u, start, hp, batch):
    return pulled_to_start(t, u, hp["center"], hp, batch)


def pulled_and_decayed(t, u, start, hp, batch):
    return combine(lambda f, x: f - 0.2 * x, pulled_to_start(t, u, start, hp, batch), u)


def heavy(t, state, start, hp, batch):
    u, v = state
    return v, combine(lambda g, w, x: -g - hp["rate"] * w - 0.1 * x, grad(u, batch, hp), v, u)


def nesterov(t, state, start, hp, batch):
    u, v = state
    return v, combine(lambda g, w: -g - 3 / (t + 0.7) * w, grad(u, batch, hp), v)


class Case(NamedTuple):
    field: object
    velocity: object
    start: object = lambda params: params
    readout: object = lambda state: state


CASES = {
    "gradient flow": Case(odeopt.GradientFlow(loss), flow),
    "gradient flow with aux": Case(odeopt.GradientFlow(loss_with_aux, has_aux=True), flow),
    "weight decay": Case(odeopt.GradientFlow(loss, weight_decay=rate), decayed),
    "regularized": Case(odeopt.RegularizedFlow(loss, strength=rate), pulled_to_start),
    "regularized to a centre": Case(
        odeopt.RegularizedFlow(loss, rate, center=lambda hp: hp["center"]), pulled_to_center
    ),
    "regularized with weight decay": Case(
        odeopt.RegularizedFlow(loss_with_aux, rate, weight_decay=0.2, has_aux=True),
        pulled_and_decayed,
    ),
    "heavy ball": Case(
        odeopt.HeavyBall(loss, damping=rate, weight_decay=0.1), heavy, at_rest, lambda s: s[0]
    ),
    "heavy ball with aux": Case(
        odeopt.HeavyBall(loss_with_aux, rate, 0.1, has_aux=True), heavy, at_rest, lambda s: s[0]
    ),
    "nesterov": Case(NesterovFlow(loss, shift=0.7), nesterov, at_rest, lambda s: s[0]),
    "nesterov with aux": Case(
        NesterovFlow(loss_with_aux, 0.7, has_aux=True), nesterov, at_rest, lambda s: s[0]
    ),
    "a function": Case(timed, timed),
}


GRADIENT_FIELDS = {
    "gradient flow": odeopt.GradientFlow(loss),
    "weight decay": odeopt.GradientFlow(loss, weight_decay=rate),
    "weight decay by a number": odeopt.GradientFlow(loss_with_aux, 0.3, has_aux=True),
    "regularized": odeopt.RegularizedFlow(loss, strength=rate, weight_decay=0.2),
    "regularized to a centre": odeopt.RegularizedFlow(loss, 2, center=lambda hp: hp["center"]),
}


cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def unrolled(case, params, batch, hparams, lr):
    state = case.start(params)
    for k in range(STEPS):
        slope = case.velocity(k * lr, state, params, hparams, batch)
        state = combine(lambda y, f: y + lr * f, state, slope)
    return state


def inputs(device):
    """Params, batch, hparams, lr and the list of all that a gradient is taken of."""
    params, hparams = make_params(device), make_hparams(device)
    lr = torch.tensor(LR, device=device)
    leaves = [*tree.leaves(params), *tree.leaves(hparams), lr]
    for leaf in leaves:
        leaf.requires_grad_()
    return params, make_batch(device), hparams, lr, leaves


def expected_gradients(case, params, batch, hparams, lr, leaves):
    value = outer_loss(case.readout(unrolled(case, params, batch, hparams, lr)), batch)
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), found


@cases
def test_the_final_state_is_that_of_the_loop(device, case):
    params, batch, hparams, lr, _ = inputs(device)
    sol = odeopt.ODEOptimizer(case.field).solve(
        params, batch, odeopt.TimeGrid.from_lr(lr, STEPS), hparams=hparams
    )
    expected = unrolled(case, params, batch, hparams, lr)
    torch.testing.assert_close(sol.state, expected)
    torch.testing.assert_close(sol.params, case.readout(expected))


@cases
def test_gradients_of_solve_agree_with_autograd_through_the_loop(device, case):
    params, batch, hparams, lr, leaves = inputs(device)
    _, expected = expected_gradients(case, params, batch, hparams, lr, leaves)
    grid = odeopt.TimeGrid.from_lr(lr, STEPS)
    sol = odeopt.ODEOptimizer(case.field).solve(params, batch, grid, hparams=hparams)
    value = outer_loss(sol.params, batch)
    found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, expected)


@cases
def test_value_and_grad_agrees_with_autograd_through_the_loop(device, case):
    params, batch, hparams, lr, leaves = inputs(device)
    value, expected = expected_gradients(case, params, batch, hparams, lr, leaves)
    grid = odeopt.TimeGrid.from_lr(lr, STEPS)
    res = odeopt.ODEOptimizer(case.field).value_and_grad(outer_loss)(
        params, batch, grid, batch, hparams=hparams
    )
    torch.testing.assert_close(res.value, value)
    found = (*tree.leaves(res.grads.params), *tree.leaves(res.grads.hparams), res.grads.dt.sum())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("field", GRADIENT_FIELDS.values(), ids=GRADIENT_FIELDS.keys())
def test_the_velocity_is_minus_the_gradient_of_the_potential(device, field):
    params, batch, hparams = make_params(device), make_batch(device), make_hparams(device)
    state = combine(lambda x: x + 0.5, params)
    _, consts = field.init(params, hparams)
    arguments = (consts, hparams, batch)
    t = torch.zeros((), device=device)
    expected = torch.func.grad(lambda y: field.potential(t, y, *arguments))(state)
    found = field.velocity(t, state, *arguments)
    torch.testing.assert_close(found, combine(torch.neg, expected))


def test_a_gradient_field_needs_only_a_potential(device):
    class Well(odeopt.GradientField):
        def potential(self, t, state, consts, hparams, batch):
            return (1 + t) * (state**4).sum()

    y = torch.randn(3, device=device)
    found = Well().velocity(torch.tensor(0.5, device=device), y, (), None, None)
    torch.testing.assert_close(found, -6 * y**3)
