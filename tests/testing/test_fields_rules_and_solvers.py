"""Rounding is allowed in a readout; what a solver or a rule says of itself is checked."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.solver.base import reached
from odeopt.testing import check_field, check_rule, check_solver
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss


class Stretched(odeopt.Field):
    r"""Gradient flow in $\sinh^{-1}$ of the parameters, so that a readout rounds."""

    off = 0.0

    def __init__(self, loss):
        self.loss = loss

    def init(self, params, hparams):
        return tree.map_tensors(torch.asinh, params), ()

    def readout(self, state):
        return tree.map_tensors(lambda x: torch.sinh(x) * (1 + self.off), state)

    def velocity(self, t, state, consts, hparams, batch):
        def value(y):
            return call_loss(self.loss, hparams, self.readout(y), batch)

        return tree.map_tensors(torch.neg, torch.func.grad(value)(state))


class Off(Stretched):
    off = 1e-9


def test_a_readout_may_round_but_not_be_off(device):
    check_field(Stretched, device)
    with pytest.raises(AssertionError, match=r"is not params: relative error 1\.0e-09"):
        check_field(Off, device)


class Drifting(odeopt.Field):
    """Its start has a constant that changes a little from call to call."""

    def __init__(self, loss):
        self.flow, self.calls = odeopt.GradientFlow(loss), 0

    def init(self, params, hparams):
        self.calls += 1
        return params, torch.tensor(1 + 1e-14 * self.calls)

    def velocity(self, t, state, consts, hparams, batch):
        slope = self.flow.velocity(t, state, (), hparams, batch)
        return tree.map_tensors(lambda x: x * consts, slope)


def test_a_field_whose_start_is_not_the_same_again_is_told(device):
    with pytest.raises(AssertionError, match="differs when it is evaluated again"):
        check_field(Drifting, device)


class Descent(odeopt.UpdateRule):
    """Gradient descent on a stretched scale, with as many gradients as it is told."""

    def __init__(self, loss, gradients=1, off=0.0):
        self.loss, self.gradients, self.off = loss, gradients, off

    def init(self, params, hparams):
        return tree.map_tensors(torch.asinh, params), ()

    def readout(self, state):
        return tree.map_tensors(lambda x: torch.sinh(x) * (1 + self.off), state)

    def update(self, k, lr, state, consts, hparams, batch):
        def value(y):
            return call_loss(self.loss, hparams, self.readout(y), batch)

        for _ in range(self.gradients):
            slope = torch.func.grad(value)(state)
            state = tree.pytree.tree_map(lambda x, g: x - lr * g, state, slope)
        return state


def test_a_rule_that_rounds_its_readout_conforms(device):
    check_rule(Descent, device)
    with pytest.raises(AssertionError, match=r"is not params: relative error 1\.0e-09"):
        check_rule(lambda loss: Descent(loss, off=1e-9), device)


def test_a_rule_that_takes_two_gradients_is_told():
    with pytest.raises(AssertionError, match="evaluates the loss 2 times, but counts as one"):
        check_rule(lambda loss: Descent(loss, gradients=2))


class Ending(odeopt.ModifiedEuler):
    """Says of its steps that they lead to `change(their end)`."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def pull(self, stepping, t, dt, y0, lam):
        found = super().pull(stepping, t, dt, y0, lam)
        y1 = self.step(stepping.velocity, t, dt, y0)
        return found._replace(end=self.change(y0, y1))


@pytest.mark.parametrize("change", [
    lambda y0, y1: None, lambda y0, y1: reached(y1), lambda y0, y1: reached(y1 + 1e-12 * y1),
])  # fmt: skip
def test_a_solver_that_says_the_right_end_or_none_conforms(device, change):
    check_solver(Ending(change), device)


@pytest.mark.parametrize(("change", "message"), [
    (lambda y0, y1: reached(y0), "is not where step leads: the gap is"),
    (lambda y0, y1: reached(y1 + 1e-6), "is not where step leads: the gap is"),
    (lambda y0, y1: reached(y1[:5]), r"\(\(5,\), 5\); expected \(\(13,\), 13\)"),
])  # fmt: skip
def test_a_solver_that_says_another_end_is_told(change, message):
    with pytest.raises(AssertionError, match=message):
        check_solver(Ending(change))
