"""Registries: names, entries, clashes and plugins."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

import odeopt
from odeopt import registry as registry_module
from odeopt.registry import Registry, load_plugins

GROUP = registry_module.ENTRY_POINT_GROUP


@pytest.fixture
def plugins(monkeypatch):
    """Replaces the installed entry points; load them with `load_plugins()`."""

    def install(*points):
        monkeypatch.setattr(registry_module, "_reports", None)
        monkeypatch.setattr(registry_module, "entry_points", lambda group: _only(group, points))

    return install


def _only(group, points):
    return tuple(point for point in points if point.group == group)


def _module(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


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


def test_an_entry_can_be_registered_again():
    registry = Registry("thing")
    registry.register("mine")(dict)
    registry.register("mine")(dict)
    assert registry.names() == ["mine"]


def test_an_empty_name_is_refused():
    with pytest.raises(odeopt.InputError, match="thing under an empty name"):
        Registry("thing").register("")


def test_an_unknown_name_lists_the_names_there_are():
    with pytest.raises(odeopt.UnknownNameError, match="unknown solver 'eulr'; expected one of"):
        odeopt.SOLVERS.get("eulr")
    with pytest.raises(odeopt.UnknownNameError, match=r"euler, .*rk4"):
        odeopt.SOLVERS.example("eulr")


def test_an_unknown_name_is_a_key_error_with_a_readable_message():
    with pytest.raises(KeyError) as caught:
        odeopt.FIELDS.get("no-such-field")
    assert str(caught.value).startswith("unknown field 'no-such-field'")


def test_the_built_in_plugins_come_through_the_entry_point():
    reports = {report.module: report for report in load_plugins()}
    assert reports["odeopt_plugins"].error is None
    assert reports["odeopt_plugins"].distribution == "odeopt"
    assert "nesterov-flow" in odeopt.FIELDS.names()


def test_entry_points_are_loaded_once(plugins, monkeypatch):
    calls = []
    plugins()
    monkeypatch.setattr(registry_module, "entry_points", lambda group: calls.append(group) or ())
    load_plugins()
    load_plugins()
    assert calls == [GROUP]


def test_looking_up_a_name_loads_plugins(plugins, monkeypatch):
    registry = Registry("thing")
    _module(monkeypatch, "good_plugin")
    plugins(EntryPoint("good", "good_plugin", GROUP))
    monkeypatch.setattr(
        registry_module.importlib, "import_module", lambda name: registry.register(name)(dict)
    )
    assert registry.get("good_plugin") is dict


def test_entry_points_of_other_groups_are_left_alone(plugins):
    plugins(EntryPoint("other", "no_such_module_anywhere", "another.group"))
    assert load_plugins() == []


def test_a_failing_plugin_is_reported(plugins):
    plugins(EntryPoint("broken", "no_such_module_anywhere", GROUP))
    (report,) = load_plugins()
    assert (report.name, report.module) == ("broken", "no_such_module_anywhere")
    assert "ModuleNotFoundError" in report.error


def test_a_failing_plugin_brings_nothing_else_down(plugins, monkeypatch):
    _module(monkeypatch, "good_plugin")
    plugins(
        EntryPoint("broken", "no_such_module_anywhere", GROUP),
        EntryPoint("good", "good_plugin", GROUP),
    )
    assert [report.error is None for report in load_plugins()] == [False, True]
    assert odeopt.SOLVERS.get("euler") is odeopt.Euler


def test_a_plugin_that_raises_while_imported_is_reported(plugins, monkeypatch, tmp_path):
    (tmp_path / "raising_plugin.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins(EntryPoint("raising", "raising_plugin", GROUP))
    (report,) = load_plugins()
    assert report.error == "RuntimeError: no licence"


def test_a_plugin_that_ends_the_program_is_reported(plugins, monkeypatch, tmp_path):
    (tmp_path / "leaving_plugin.py").write_text("raise SystemExit('wrong machine')\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins(EntryPoint("leaving", "leaving_plugin", GROUP))
    (report,) = load_plugins()
    assert report.error == "SystemExit: wrong machine"


def test_a_malformed_entry_point_is_reported(plugins):
    plugins(EntryPoint("malformed", "!!", GROUP))
    (report,) = load_plugins()
    assert report.error is not None


def test_an_unknown_name_mentions_plugins_that_failed(plugins):
    plugins(EntryPoint("broken", "no_such_module_anywhere", GROUP))
    with pytest.raises(odeopt.UnknownNameError, match="Plugins that failed to load: broken"):
        odeopt.SOLVERS.get("eulr")


def test_a_plugin_may_look_up_names_while_it_is_imported(plugins, monkeypatch, tmp_path):
    (tmp_path / "asking_plugin.py").write_text(
        "import odeopt\nassert odeopt.SOLVERS.get('euler') is odeopt.Euler\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plugins(EntryPoint("asking", "asking_plugin", GROUP))
    assert load_plugins()[0].error is None


def test_reports_cannot_be_changed_from_outside(plugins):
    plugins(EntryPoint("broken", "no_such_module_anywhere", GROUP))
    load_plugins().clear()
    assert len(load_plugins()) == 1
