"""Arguments of fields that are refused or converted."""

from __future__ import annotations

import pytest
import torch
from odeopt_plugins.nesterov_flow import NesterovFlow
from support.fields import (
    loss,
    make_batch,
    make_hparams,
    make_params,
    outer_loss,
    timed,
)

import odeopt
from odeopt.inner import CallableField, as_field


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


class Dynamics(torch.nn.Module):
    """A velocity as torchdiffeq takes it."""

    def forward(self, t, y):
        return -t * y


@pytest.mark.parametrize("velocity", [lambda t, y: -y, Dynamics(), lambda t, *, y: y])
def test_a_velocity_of_other_arguments_is_refused_with_the_rewrite(velocity):
    with pytest.raises(odeopt.InputError, match=r"with \(t, state, consts.*lambda t, y, consts"):
        odeopt.ODEOptimizer(velocity)


def test_a_velocity_that_takes_any_arguments_is_taken(device):
    opt = odeopt.ODEOptimizer(lambda *args: -args[1])
    end = opt.solve(torch.ones(2, device=device), None, odeopt.TimeGrid.from_lr(0.5, 2)).params
    assert end.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("name", ["callback_step", "callback_reject_step_adjoint"])
def test_callbacks_of_torchdiffeq_are_not_passed_over_in_silence(name):
    def velocity(t, y, consts, hparams, batch):
        return -y

    setattr(velocity, name, lambda t, y, dt: None)
    with pytest.raises(odeopt.CompatibilityError, match=f"callback {name}, which torchdiffeq"):
        odeopt.ODEOptimizer(velocity)


def test_a_field_without_a_velocity_cannot_be_made():
    class Half(odeopt.Field):
        pass

    with pytest.raises(TypeError, match="velocity"):
        Half()
