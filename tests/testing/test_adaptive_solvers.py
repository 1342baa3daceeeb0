"""Solvers that choose their own steps, and controllers, with something wrong do not conform."""

from __future__ import annotations

import pytest
import torch

from odeopt import Adaptive, Midpoint, PIController, StabilizedRK
from odeopt.solver import BOGACKI_SHAMPINE
from odeopt.testing import check_controller, check_solver
from odeopt.testing.solvers import check_chosen_steps


class Altered(Adaptive):
    """A method of order 3 whose attempts are altered."""

    def __init__(self, change=lambda dt, y, slope, tried: tried):
        super().__init__(1e-3, 1e-3, BOGACKI_SHAMPINE)
        self.change = change

    def attempt(self, velocity, t, dt, y, slope):
        return self.change(dt, y, slope, super().attempt(velocity, t, dt, y, slope))


class Mixing(torch.autograd.Function):
    """The identity, but tasks get their mean."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, x):
        return x.mean(in_dims[0], keepdim=True).expand_as(x), in_dims[0]


@pytest.mark.parametrize("solver", [
    Altered(), StabilizedRK(stages=6), Adaptive(controller=PIController(per_task=False)),
], ids=["order 3", "fixed stages", "common steps"])  # fmt: skip
def test_a_right_solver_conforms(device, solver):
    check_solver(solver, device)


def error(change):
    return lambda dt, y, slope, tried: tried._replace(error=change(dt, tried.error))


@pytest.mark.parametrize(("change", "message"), [
    (lambda dt, y, slope, tried: tried._replace(y=torch.ones_like(y)), "not lead where step does"),
    (lambda dt, y, slope, tried: tried._replace(slope=slope), "not the velocity at its new state"),
    (error(lambda dt, e: torch.zeros_like(e)), r"are 0.0e\+00, .*expected positive numbers"),
    (error(lambda dt, e: -e), "expected positive numbers"),
    (error(lambda dt, e: 0 * e + torch.nan), "expected positive numbers"),
    (error(lambda dt, e: e[None]), r"has the shape \(1,\), not \(\)"),
    (error(lambda dt, e: 0 * e + 0.5), "falls with slopes"),
    (error(lambda dt, e: e / dt), "falls with slopes"),
    (error(lambda dt, e: e.sqrt() * 1e-2 * dt**1.5), "10 times smaller"),
    (error(lambda dt, e: e.clamp(max=1)), "would be accepted"),
    (error(lambda dt, e: 1e-3 * e), "is off by"),
    (error(lambda dt, e: Mixing.apply(e)), "vmap changes the attempt of task 0"),
    (error(lambda dt, e: torch.where(dt > 0.5, 0.5 * torch.ones_like(e), e)), "are accepted that"),
])  # fmt: skip
def test_an_attempt_with_something_wrong_is_told(change, message):
    with pytest.raises(AssertionError, match=message):
        check_solver(Altered(change))


@pytest.mark.slow
def test_errors_that_do_not_follow_the_tolerance_are_told(device):
    short = Altered(error(lambda dt, e: torch.where(dt > 0.01, e + 2, e)))
    with pytest.raises(AssertionError, match=r"to the power of -?0\.\d\d; expected 1\.00"):
        check_chosen_steps(short, device)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("attempt_gradients", 4, "evaluates the velocity 3 times, but attempt_gradients is 4"),
    ("error_order", 3, "falls with slopes"),
    ("initial_dt", lambda *at: torch.tensor(-0.1), "first step size is -0.1.*expected a positive"),
    ("initial_dt", lambda *at: torch.ones(2), r"shape \(2,\), not \(\)"),
])  # fmt: skip
def test_a_statement_that_is_wrong_is_told(name, value, message):
    solver = Altered()
    setattr(solver, name, value)
    with pytest.raises(AssertionError, match=message):
        check_solver(solver)


def test_a_solver_that_chooses_steps_without_an_estimate_is_told():
    class Free(Midpoint):
        chooses_steps = True

    with pytest.raises(AssertionError, match="Free says that it chooses its steps, but is not Err"):
        check_solver(Free())


class Controller(PIController):
    """A controller whose factors or pooled errors are altered."""

    def __init__(self, factor=lambda e, found: found, pool=None, per_task=True):
        super().__init__(per_task)
        object.__setattr__(self, "change", factor)
        object.__setattr__(self, "change_pool", pool or (lambda e, found: found))

    def factor(self, error, previous, order):
        return self.change(error, super().factor(error, previous, order))

    def pool(self, error):
        return self.change_pool(error, super().pool(error))


def test_a_right_controller_conforms(device):
    check_controller(Controller(), device=device)
    check_controller(PIController(per_task=False, alpha=1.0, beta=0.0), 1, device)


@pytest.mark.parametrize(("change", "message"), [
    (lambda e, found: found.clamp(max=1), "error of 0 leads to the factor 1: steps never grow"),
    (lambda e, found: found.clamp(min=1), "rejected again and again"),
    (lambda e, found: torch.where(e.isinf(), 1.0, found), "error of inf .*again and again"),
    (lambda e, found: torch.where(e > 2, 0.0, found), "error of 30 leads to the factor 0.0"),
    (lambda e, found: torch.where(e == 0, -1.0, found), "error of 0 leads to the factor -1.0"),
    (lambda e, found: torch.where(e.isnan(), e, found), "error of nan leads to the factor nan"),
    (lambda e, found: torch.where(e < 2, 1.5, found), "of 1.01, for which a step is rejected"),
    (lambda e, found: found.mean(), r"shape \(10,\) lead to factors of shape \(\)"),
    (lambda e, found: found.amin().expand(e.shape), "depends on the errors of other tasks"),
    (lambda e, found: found.clamp(max=1.01), r"from 0.001 times .*come to 0\.00.* after 100"),
    (lambda e, found: found.clamp(min=0.99), r"from 1000 times .* after 100 attempts"),
    (lambda e, found: torch.where(e > 1e-9, found.clamp(max=0.9), found), "come to .*expected 0.2"),
])  # fmt: skip
def test_a_factor_that_is_wrong_is_told(change, message):
    with pytest.raises(AssertionError, match=message):
        check_controller(Controller(change))


@pytest.mark.parametrize(("change", "per_task", "message"), [
    (lambda e, found: e.mean(), True, r"shape \(3,\) to \(\)"),
    (lambda e, found: 2 * e, True, "of a single state, 2, to 4"),
    (lambda e, found: e.flip(0) if e.ndim else e, True, "each task has its own steps"),
    (lambda e, found: e, False, "all tasks take the same steps"),
    (lambda e, found: e.sum().expand(e.shape), False, "expected a mean of them"),
])  # fmt: skip
def test_pooled_errors_that_are_wrong_are_told(change, per_task, message):
    with pytest.raises(AssertionError, match=message):
        check_controller(Controller(pool=change, per_task=per_task))


@pytest.mark.slow
def test_the_controller_of_a_solver_is_checked():
    never = Controller(lambda e, found: found.clamp(max=1))
    with pytest.raises(AssertionError, match="steps never grow"):
        check_solver(Adaptive(1e-3, 1e-3, controller=never))
