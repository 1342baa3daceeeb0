"""Fields: velocities, potentials, selectors, and gradients against autograd through a loop."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from odeopt_plugins.nesterov_flow import NesterovFlow

import odeopt
from odeopt import tree
from odeopt.field import CallableField, as_field

LR, STEPS = 0.15, 6
pytree = tree.pytree


def loss(params, batch, hparams=None):
    x, y = batch
    scale = 1.0 if hparams is None else hparams["scale"]
    return scale * ((torch.tanh(x @ params["w"]) @ params["v"] - y) ** 2).mean()


def outer_loss(params, batch, hparams=None):
    return (params["w"] ** 2).sum() + loss(params, batch) + params["v"].sum()


def loss_with_aux(params, batch, hparams=None):
    return loss(params, batch, hparams), {"anything": "at all"}


def make_params(device):
    return {"v": torch.randn(2, device=device), "w": torch.randn(3, 2, device=device)}


def make_batch(device):
    return torch.randn(5, 3, device=device), torch.randn(5, device=device)


def make_hparams(device):
    return {
        "scale": torch.tensor(0.8, device=device),
        "rate": torch.tensor(0.3, device=device),
        "center": make_params(device),
    }


def rate(hparams):
    return hparams["rate"]


# Reference: the same loop, written down with autograd


def grad(params, batch, hparams):
    value = loss(params, batch, hparams)
    gradients = torch.autograd.grad(value, tree.leaves(params), create_graph=True)
    return pytree.tree_unflatten(list(gradients), pytree.tree_structure(params))


def combine(fn, *trees):
    return pytree.tree_map(fn, *trees)


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


def timed(t, state, consts, hp, batch):
    """Also a velocity for odeopt: it depends on t, on hparams and on the batch."""
    x, _ = batch
    return combine(lambda u: torch.cos(3 * t + hp["rate"]) * u * x.mean() - t * u, state)


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


@pytest.mark.parametrize("weight_decay", [0.0, 0, 0.1, 3e-4, 1])
def test_euler_on_gradient_flow_is_sgd_bit_for_bit(device, weight_decay):
    params, batch = make_params(device), make_batch(device)
    own = [leaf.clone().requires_grad_() for leaf in tree.leaves(params)]
    names = list(params)
    sgd = torch.optim.SGD(own, lr=0.05, weight_decay=weight_decay)
    for _ in range(50):
        sgd.zero_grad()
        loss(dict(zip(names, own, strict=True)), batch).backward()
        sgd.step()
    field = odeopt.GradientFlow(loss, weight_decay=weight_decay)
    sol = odeopt.ODEOptimizer(field).solve(params, batch, odeopt.TimeGrid.from_lr(0.05, 50))
    assert all(torch.equal(sol.params[name], leaf) for name, leaf in zip(names, own, strict=True))


def test_sgd_with_a_rate_per_step_is_bit_equal(device):
    params, batch, rates = make_params(device), make_batch(device), [0.1, 0.03, 0.2, 0.07]
    own = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    sgd = torch.optim.SGD(own.values(), lr=0.1)
    for lr in rates:
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        loss(own, batch).backward()
        sgd.step()
    field = odeopt.GradientFlow(loss)
    sol = odeopt.ODEOptimizer(field).solve(params, batch, odeopt.TimeGrid.from_lr(rates))
    assert all(torch.equal(sol.params[name], own[name]) for name in own)


def test_the_center_is_the_initialisation_by_default(device):
    params = make_params(device)
    _, consts = odeopt.RegularizedFlow(loss, 1.0).init(params, None)
    assert consts is params


def test_strength_stands_for_half_of_it_times_the_squared_distance(device):
    field = odeopt.RegularizedFlow(lambda p, b: 0.0 * p.sum(), strength=3.0)
    y, c = torch.randn(4, device=device), torch.randn(4, device=device)
    t = torch.zeros((), device=device)
    expected = 1.5 * ((y - c) ** 2).sum()
    torch.testing.assert_close(field.potential(t, y, c, None, None), expected)
    torch.testing.assert_close(field.velocity(t, y, c, None, None), -3.0 * (y - c))


@pytest.mark.parametrize("field", [
    odeopt.HeavyBall(loss, damping=1.0), NesterovFlow(loss),
], ids=["heavy ball", "nesterov"])  # fmt: skip
def test_fields_with_inertia_start_at_rest_and_read_out_the_place(device, field):
    params = make_params(device)
    (u, v), consts = field.init(params, None)
    assert u is params
    assert all(not leaf.any() for leaf in tree.leaves(v))
    assert consts == ()
    assert field.readout((u, v)) is params


@pytest.mark.parametrize(("make", "what"), [
    (lambda pick: odeopt.GradientFlow(loss, weight_decay=pick), "weight_decay"),
    (lambda pick: odeopt.RegularizedFlow(loss, strength=pick), "strength"),
    (lambda pick: odeopt.RegularizedFlow(loss, 1.0, center=pick), "center"),
    (lambda pick: odeopt.HeavyBall(loss, damping=pick), "damping"),
])  # fmt: skip
def test_a_selector_without_hparams_says_so(device, make, what):
    opt = odeopt.ODEOptimizer(make(lambda hp: hp["x"]))
    arguments = make_params(device), make_batch(device), odeopt.TimeGrid.from_lr(0.1, 2)
    with pytest.raises(odeopt.InputError, match=f"{what} is a selector, but hparams is None: pass"):
        opt.solve(*arguments)
    with pytest.raises(odeopt.InputError, match=f"{what} is a selector, but hparams is None: pass"):
        opt.value_and_grad(outer_loss)(*arguments, make_batch(device))


def test_a_constant_tensor_is_as_good_as_a_number(device):
    arguments = make_params(device), make_batch(device), odeopt.TimeGrid.from_lr(0.1, 3)
    number, tensor = (
        odeopt.ODEOptimizer(odeopt.HeavyBall(loss, damping=x)).solve(*arguments).params
        for x in (0.5, torch.tensor(0.5, device=device))
    )
    torch.testing.assert_close(number, tensor)


def test_a_float32_hyperparameter_does_not_change_the_dtype(device):
    hparams = {"mu": torch.tensor(0.5, dtype=torch.float32, device=device)}
    field = odeopt.RegularizedFlow(lambda p, b, hp: loss(p, b), lambda hp: hp["mu"])
    res = odeopt.ODEOptimizer(field).value_and_grad(lambda p, b, hp: outer_loss(p, b))(
        make_params(device), make_batch(device), odeopt.TimeGrid.from_lr(0.1, 3),
        make_batch(device), hparams=hparams,
    )  # fmt: skip
    assert res.grads.params["w"].dtype is torch.float64
    assert res.grads.hparams["mu"].dtype is torch.float32


@pytest.mark.parametrize("make", [
    odeopt.GradientFlow, lambda f: odeopt.RegularizedFlow(f, 1.0), lambda f: odeopt.HeavyBall(f, 1),
    NesterovFlow,
], ids=["gradient flow", "regularized", "heavy ball", "nesterov"])  # fmt: skip
def test_a_loss_that_is_no_function_is_refused(make):
    with pytest.raises(odeopt.InputError, match=r"loss is 'mse'; expected a function"):
        make("mse")


def test_a_center_that_is_no_selector_is_refused(device):
    with pytest.raises(odeopt.InputError, match="center is not a function; expected a selector"):
        odeopt.RegularizedFlow(loss, 1.0, center=torch.zeros(2, device=device))


def test_a_center_of_another_structure_is_refused(device):
    field = odeopt.RegularizedFlow(loss, 1.0, center=lambda hp: {"other": hp["scale"]})
    with pytest.raises(odeopt.InputError, match="center"):
        odeopt.ODEOptimizer(field).solve(
            make_params(device), make_batch(device), odeopt.TimeGrid.from_lr(0.1, 2),
            hparams=make_hparams(device),
        )  # fmt: skip


@pytest.mark.parametrize("value", ["mu", None, [1.0]])
def test_a_strength_that_is_neither_number_nor_selector_is_refused(value):
    with pytest.raises(odeopt.InputError, match="strength"):
        odeopt.RegularizedFlow(loss, strength=value)


@pytest.mark.parametrize("returned", [1, (1, 2, 3), [1, 2]])
def test_has_aux_wants_a_pair(device, returned):
    def bad(params, batch):
        return loss(params, batch) if returned == 1 else returned

    field = odeopt.GradientFlow(bad, has_aux=True)
    with pytest.raises(
        odeopt.InputError, match=r"(?s)has_aux=True, but loss returned .*; expected"
    ):
        odeopt.ODEOptimizer(field).solve(
            make_params(device), make_batch(device), odeopt.TimeGrid.from_lr(0.1, 1)
        )


def test_as_field_keeps_a_field_and_wraps_a_function():
    field = odeopt.GradientFlow(loss)
    assert as_field(field) is field
    assert isinstance(as_field(timed), CallableField)


@pytest.mark.parametrize("wrong", [odeopt.GradientFlow, odeopt.Field, 3.0, "gradient-flow", None])
def test_as_field_refuses_anything_else(wrong):
    with pytest.raises(odeopt.InputError, match=r"the inner optimiser is .*; expected a Field"):
        as_field(wrong)


def test_a_field_without_a_velocity_cannot_be_made():
    class Half(odeopt.Field):
        pass

    with pytest.raises(TypeError, match="velocity"):
        Half()
