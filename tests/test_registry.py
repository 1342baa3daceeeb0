"""Registries: names, entries and clashes."""

from __future__ import annotations

import re
from functools import wraps

import pytest

import odeopt
from odeopt.registry import Registry


@pytest.mark.parametrize(("registry", "name", "entry"), [
    (odeopt.FIELDS, "gradient-flow", odeopt.GradientFlow),
    (odeopt.FIELDS, "regularized-flow", odeopt.RegularizedFlow),
    (odeopt.FIELDS, "heavy-ball", odeopt.HeavyBall),
    (odeopt.SOLVERS, "euler", odeopt.Euler),
    (odeopt.SOLVERS, "modified-euler", odeopt.ModifiedEuler),
    (odeopt.SOLVERS, "midpoint", odeopt.Midpoint),
    (odeopt.SOLVERS, "rk4", odeopt.RK4),
    (odeopt.SOLVERS, "chebyshev-2", odeopt.Chebyshev2),
    (odeopt.SOLVERS, "chebyshev-3", odeopt.Chebyshev3),
    (odeopt.SOLVERS, "adaptive", odeopt.Adaptive),
    (odeopt.SOLVERS, "dormand-prince", odeopt.DormandPrince),
    (odeopt.SOLVERS, "torchdiffeq", odeopt.Torchdiffeq),
    (odeopt.ADJOINTS, "discrete", odeopt.DiscreteAdjoint),
    (odeopt.ADJOINTS, "truncated", odeopt.TruncatedAdjoint),
    (odeopt.ADJOINTS, "backsolve", odeopt.BacksolveAdjoint),
    (odeopt.ADJOINTS, "first-order", odeopt.FirstOrderAdjoint),
    (odeopt.CHECKPOINTS, "every", odeopt.Every),
    (odeopt.CHECKPOINTS, "density", odeopt.Density),
    (odeopt.CHECKPOINTS, "graded", odeopt.Graded),
    (odeopt.CHECKPOINTS, "binomial", odeopt.Binomial),
])  # fmt: skip
def test_get_returns_the_class(registry, name, entry):
    assert registry.get(name) is entry


@pytest.mark.parametrize("method", ["euler", "modified-euler", "midpoint", "rk4"])
def test_get_returns_a_factory_for_each_continuous_adjoint(method):
    adjoint = odeopt.ADJOINTS.get(f"continuous-{method}")()
    assert isinstance(adjoint, odeopt.ContinuousAdjoint)
    assert isinstance(adjoint.solver, odeopt.SOLVERS.get(method))


@pytest.mark.parametrize(
    "registry", [odeopt.FIELDS, odeopt.SOLVERS, odeopt.ADJOINTS, odeopt.CHECKPOINTS]
)
def test_names_are_sorted_and_each_can_be_got(registry):
    names = registry.names()
    assert names == sorted(set(names))
    assert all(callable(registry.get(name)) for name in names)


@pytest.mark.parametrize(
    "registry", [odeopt.SOLVERS, odeopt.ADJOINTS, odeopt.CHECKPOINTS], ids=lambda r: r.kind
)
def test_examples_build_instances(registry):
    for name in registry.names():
        assert not isinstance(registry.example(name)(), type)


def test_field_examples_take_a_loss():
    for name in odeopt.FIELDS.names():
        inner = odeopt.FIELDS.example(name)(lambda params, batch: None)
        assert isinstance(inner, odeopt.Field | odeopt.UpdateRule)


def test_register_returns_the_entry_and_makes_it_the_example():
    registry = Registry("thing")

    @registry.register("mine")
    class Mine:
        pass

    assert registry.get("mine") is Mine
    assert isinstance(registry.example("mine")(), Mine)
    assert registry.names() == ["mine"]


def test_an_example_of_its_own_is_used():
    registry = Registry("thing")
    registry.register("mine", example=lambda: 42)(dict)
    assert registry.example("mine")() == 42


def test_a_taken_name_is_refused_and_the_first_entry_stays():
    registry = Registry("thing")
    registry.register("mine")(dict)
    with pytest.raises(odeopt.InputError, match=r"builtins\.list as thing 'mine'.*builtins\.dict"):
        registry.register("mine")(list)
    assert registry.get("mine") is dict


def test_a_name_stays_with_the_module_that_took_it():
    taken = odeopt.METHODS.get("maml")

    @wraps(taken)  # which gives it the same module and name
    def disguised(*args, **keywords):
        return taken(*args, **keywords)

    for entry in (disguised, taken):
        with pytest.raises(odeopt.InputError, match=r"registered by odeopt_plugins\.maml\. Choose"):
            odeopt.METHODS.register("maml", example=list)(entry)
    assert odeopt.METHODS.get("maml") is taken
    assert odeopt.METHODS.example("maml") is not list


def test_an_entry_can_be_registered_again():
    registry = Registry("thing")
    registry.register("mine")(dict)
    registry.register("mine")(dict)
    assert registry.names() == ["mine"]


@pytest.mark.parametrize("name", ["", " ", 3, None, "two\nlines", "half \ud800"])
def test_a_name_that_cannot_be_listed_is_refused(name):
    with pytest.raises(odeopt.InputError, match=f"thing under the name {re.escape(repr(name))}"):
        Registry("thing").register(name)


@pytest.mark.parametrize("entry", [None, 3])
def test_an_entry_that_cannot_be_called_is_refused(entry):
    registry = Registry("thing")
    with pytest.raises(odeopt.InputError, match=f"register {entry} as thing 'mine'; expected a"):
        registry.register("mine")(entry)
    assert registry.names() == []


def test_an_unknown_name_lists_the_names_there_are():
    expected = r"unknown solver 'eulr' \(did you mean 'euler'\?\); expected one of"
    with pytest.raises(odeopt.UnknownNameError, match=expected):
        odeopt.SOLVERS.get("eulr")
    with pytest.raises(odeopt.UnknownNameError, match=r"euler, .*rk4"):
        odeopt.SOLVERS.example("eulr")


@pytest.mark.parametrize(("registry", "given", "meant"), [
    (odeopt.FIELDS, "GradientFlow", "gradient-flow"), (odeopt.SOLVERS, "RK4", "rk4"),
    (odeopt.SOLVERS, "euler-modified", "modified-euler"), (odeopt.METHODS, "amaml", "a-maml"),
    (odeopt.CHECKPOINTS, "revolve-binomial", "binomial"),
])  # fmt: skip
def test_an_unknown_name_leads_to_the_one_that_was_meant(registry, given, meant):
    with pytest.raises(odeopt.UnknownNameError, match=rf"'{given}' \(did you mean '{meant}'\?\)"):
        registry.get(given)


def test_a_name_like_no_other_leads_nowhere():
    with pytest.raises(odeopt.UnknownNameError) as caught:
        odeopt.SOLVERS.get("zzz")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_name_is_a_key_error_with_a_readable_message():
    with pytest.raises(KeyError) as caught:
        odeopt.FIELDS.get("no-such-field")
    assert str(caught.value).startswith("unknown field 'no-such-field'")
