"""Calls after the first look at their first step as it is made, and make no trial."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt import Every, ODEOptimizer, TimeGrid


class Loss:
    """A quadratic that changes its mind."""

    def __init__(self):
        self.calls = 0
        self.factor = torch.ones(())
        self.draws = self.detaches = self.changes = False

    def __call__(self, params, batch):
        self.calls += 1
        noise = torch.rand(()) if self.draws else 1.0
        params = params.detach() if self.detaches else params
        if self.changes:
            batch.add_(1)
        return (params - batch).square().sum() * self.factor * noise


MAKE = {
    "flow": odeopt.GradientFlow,
    "adam": odeopt.Adam,
}


@pytest.fixture(params=MAKE)
def call(request, device):
    loss = Loss()
    opt = ODEOptimizer(MAKE[request.param](loss))
    at = torch.ones(3, device=device), torch.zeros(3, device=device), TimeGrid.from_lr(0.1, 4), None
    loss.factor = loss.factor.to(device)

    def run():
        loss.calls = 0
        return opt.value_and_grad(lambda params, batch: params.square().sum())(*at)

    return loss, run


def test_the_loss_is_evaluated_once_a_step(call):
    loss, run = call
    first = run()
    assert loss.calls == 4 + 2
    second = run()
    assert loss.calls == 4
    assert torch.equal(first.grads.params, second.grads.params)


def test_what_a_loss_captures_later_is_noticed(call):
    loss, run = call
    run()
    loss.factor = torch.ones_like(loss.factor).requires_grad_()
    with pytest.raises(odeopt.CapturedTensorError, match="is not one of its arguments"):
        run()


@pytest.mark.parametrize(("change", "kind", "words"), [
    ("draws", odeopt.NondeterminismError, "drew random numbers"),
    ("detaches", odeopt.InputError, "does not depend on the parameters"),
    ("changes", odeopt.InputError, "changes the parameters or another argument in place"),
])  # fmt: skip
def test_what_a_loss_begins_to_do_later_is_noticed(change, kind, words, call):
    loss, run = call
    run()
    setattr(loss, change, True)
    with pytest.raises(kind, match=words):
        run()


@pytest.mark.parametrize("choices", [{"checkpoints": Every(1)}, {"compile": "trace"}])
def test_without_graphs_each_call_makes_its_trial(choices, device):
    loss = Loss()
    opt = ODEOptimizer(odeopt.GradientFlow(loss), **choices)
    loss.factor = loss.factor.to(device)
    at = torch.ones(3, device=device), torch.zeros(3, device=device), TimeGrid.from_lr(0.1, 4), None
    for draws in (False, True):
        loss.draws = draws
        call = opt.value_and_grad(lambda params, batch: params.square().sum())
        if draws:
            with pytest.raises(odeopt.OdeoptError):
                call(*at)
        else:
            call(*at)


def test_a_velocity_with_a_transform_inside_makes_its_trial_in_each_call(device):
    loss = Loss()
    loss.factor = loss.factor.to(device)
    opt = ODEOptimizer(lambda t, y, consts, hparams, batch: -torch.func.grad(loss)(y, batch))
    at = torch.ones(3, device=device), torch.zeros(3, device=device), TimeGrid.from_lr(0.1, 4), None
    call = opt.value_and_grad(lambda params, batch: params.square().sum())
    first, second = call(*at), call(*at)
    assert torch.equal(first.grads.params, second.grads.params)
    assert second.stats.recorded_steps == 0
    loss.factor = torch.ones_like(loss.factor).requires_grad_()
    with pytest.raises(odeopt.CapturedTensorError):
        call(*at)
