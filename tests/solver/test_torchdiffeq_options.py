"""Options are those of torchdiffeq's methods; it only warns about others."""

from __future__ import annotations

import warnings

import pytest
import torch

import odeopt
from odeopt.solver.torchdiffeq import ADAPTIVE, ORDERS

ADAMS = {"explicit_adams", "implicit_adams"}


def evaluations(device, method, options):
    """How often the velocity is evaluated over one interval."""
    grid = odeopt.TimeGrid.uniform(1.0, 1)
    solver = odeopt.Torchdiffeq(method, 1e-3, 1e-4, options)
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(lambda u, b: (u - b).square().sum()), solver, odeopt.FirstOrderAdjoint()
    )
    start = torch.ones(3, device=device)
    return opt.solve(start, torch.zeros_like(start), grid).stats.gradient_evaluations


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("name", ["stepsize", "rtol", "func", "self", 3])
def test_unknown_options_are_refused(method, name):
    with pytest.raises(odeopt.UnknownKeywordError, match=rf"torchdiffeq's {method}: .* '{name}'"):
        odeopt.Torchdiffeq(method, options={name: 0.1})


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "small", None])
@pytest.mark.parametrize("make", [odeopt.Torchdiffeq, odeopt.DormandPrince])
def test_tolerances_are_finite_and_not_negative(make, name, value):
    with pytest.raises(odeopt.InputError, match=f"{name} is .*expected a finite number of at lea"):
        make(**{name: value})


def test_an_unknown_option_leads_to_the_one_that_was_meant():
    message = (
        r"unknown option 'stepsize' \(did you mean 'step_size'\?\); expected one of"
        r" grid_constructor, interp, perturb, step_size\."
    )
    with pytest.raises(odeopt.InputError, match=message):
        odeopt.Torchdiffeq("rk4", options={"stepsize": 0.1})
    with pytest.raises(odeopt.InputError, match=r"'max_steps' \(did you mean 'max_step'\?\)"):
        odeopt.Torchdiffeq("dopri5", options={"max_steps": 100})


def test_options_of_one_kind_of_method_are_unknown_to_the_other():
    with pytest.raises(odeopt.UnknownKeywordError, match="'max_num_steps'"):
        odeopt.Torchdiffeq("midpoint", options={"max_num_steps": 100})
    with pytest.raises(odeopt.UnknownKeywordError, match="'norm'"):  # torchdiffeq drops it
        odeopt.Torchdiffeq("rk4", options={"norm": torch.linalg.norm})


@pytest.mark.parametrize("options", [["step_size"], "step_size", 0.1])
def test_options_that_are_no_dictionary_are_refused(options):
    with pytest.raises(odeopt.InputError, match="expected a dictionary, or None"):
        odeopt.Torchdiffeq("rk4", options=options)


@pytest.mark.parametrize("method", ORDERS)
def test_known_options_are_taken_without_a_warning(device, method):
    options = {"max_step": 0.02} if method in ADAPTIVE else {"step_size": 0.125}
    options |= {"max_order": 4, "max_iters": 20} if method in ADAMS else {}
    with warnings.catch_warnings(action="error"):
        assert evaluations(device, method, options) > evaluations(device, method, None)


def test_the_options_are_kept_for_a_coarser_solve():
    solver = odeopt.Torchdiffeq("dopri5", 1e-6, 1e-8, {"safety": 0.8})
    assert solver.coarser(10.0).options == {"safety": 0.8}


def test_options_cannot_be_changed_from_outside():
    options = {"step_size": 0.1}
    solver = odeopt.Torchdiffeq("rk4", options=options)
    options["stepsize"] = 0.2
    assert solver.options == {"step_size": 0.1}


def test_a_library_solves_once_whatever_is_kept(device, monkeypatch):
    solves, solve = [], odeopt.Torchdiffeq.solve

    def counted(*args, **keywords):
        solves.append(1)
        return solve(*args, **keywords)

    monkeypatch.setattr(odeopt.Torchdiffeq, "solve", counted)
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(lambda u, b: (u - b).square().sum()), odeopt.Torchdiffeq("rk4"),
        odeopt.ContinuousAdjoint(odeopt.RK4()), odeopt.Every(2),
    )  # fmt: skip
    x = torch.ones(3, device=device)
    call = opt.value_and_grad(lambda u, b: u.sum())
    call(x, 0 * x, odeopt.TimeGrid.uniform(1.0, 6), x)
    assert len(solves) == 1
