"""The command `python -m odeopt`."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import EntryPoint

import pytest
from typer.testing import CliRunner

import odeopt
from odeopt import cli
from odeopt import registry as registry_module
from odeopt.registry import ENTRY_POINT_GROUP, PluginReport, Registry

REPORTS = [
    PluginReport("mine", "company.first.entries:setup", "company-first", "1.0", None),
    PluginReport("yours", "company.second.entries", "company-second", "2.0", None),
]


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """The installed entry points and one more, whose module raises an error of two lines."""
    (tmp_path / "raising_plugin.py").write_text("raise RuntimeError('no licence:\\n  ask for one')")
    monkeypatch.syspath_prepend(tmp_path)
    installed = registry_module.entry_points(group=ENTRY_POINT_GROUP)
    points = [EntryPoint("raising", "raising_plugin", ENTRY_POINT_GROUP), *installed]
    monkeypatch.setattr(registry_module, "_reports", None)
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)


def call(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def rows(text):
    """The cells of each line."""
    return {tuple(re.split(r"\s{2,}", line.rstrip())) for line in text.splitlines()}


def test_the_built_in_plugin_is_listed_as_loaded():
    result = call("plugins")
    assert result.exit_code == 0
    expected = ("builtin", "odeopt_plugins", "odeopt", odeopt.__version__, "loaded")
    assert expected in rows(result.stdout)


@pytest.mark.parametrize("row", [
    ("field", "gradient-flow", "odeopt.field.gradient_flow:GradientFlow", "odeopt"),
    ("field", "nesterov-flow", "odeopt_plugins.nesterov_flow:NesterovFlow", "odeopt"),
    ("solver", "rk4", "odeopt.solver.runge_kutta:RK4", "odeopt"),
    ("adjoint", "continuous-rk4", "odeopt.adjoint.continuous:ContinuousAdjoint", "odeopt"),
    ("checkpoint schedule", "every", "odeopt.checkpoint.uniform:Every", "odeopt"),
    ("method", "maml", "odeopt_plugins.maml:maml", "odeopt"),
])  # fmt: skip
def test_entries_of_each_kind_are_listed_with_where_they_come_from(row):
    assert row in rows(call("plugins").stdout)


def test_every_registered_name_is_listed():
    listed = {row[:2] for row in rows(call("plugins").stdout)}
    assert {(r.kind, name) for r in cli.REGISTRIES for name in r.names()} <= listed


def test_a_broken_plugin_is_shown_with_its_error_and_nothing_else_is_missing(broken):
    result = call("plugins")
    assert result.exit_code == 1
    cells = rows(result.stdout)
    error = "failed: RuntimeError: no licence: ask for one"
    assert ("raising", "raising_plugin", "unknown", "unknown", error) in cells
    assert ("builtin", "odeopt_plugins", "odeopt", odeopt.__version__, "loaded") in cells
    assert ("method", "maml", "odeopt_plugins.maml:maml", "odeopt") in cells


def test_without_plugins_the_entries_of_odeopt_are_listed(monkeypatch):
    monkeypatch.setattr(registry_module, "_reports", [])
    result = call("plugins")
    assert result.exit_code == 0
    row = ("solver", "euler", "odeopt.solver.runge_kutta:Euler", "odeopt")
    assert row in rows(result.stdout)


def test_columns_are_aligned():
    assert cli.aligned([("a", "bb", "c"), ("ddd", "e", "f")]) == "a    bb  c\nddd  e   f"


def test_version():
    result = call("--version")
    assert result.exit_code == 0
    assert result.stdout == f"odeopt {odeopt.__version__}\n"


def test_without_a_command_there_is_help():
    assert "plugins" in call().output


class Callme:
    def __call__(self):
        return None


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (Callme, "Callme"),
        (Callme(), "Callme"),
        (call, "call"),
        (partial(call, "plugins"), "call"),
        (partial(partial(Callme)), "Callme"),
    ],
)
def test_the_source_of_classes_functions_partials_and_instances(entry, name):
    assert cli.source(entry) == (__name__, name)


@pytest.mark.parametrize(("module", "distribution"), [
    ("company.first.fields", "company-first"), ("company.first.entries", "company-first"),
    ("company.second.fields", "company-second"), ("odeopt.field.base", "odeopt"),
    ("companyfirst", "-"), ("__main__", "-"),
])  # fmt: skip
def test_the_distribution_is_that_of_the_nearest_plugin(module, distribution):
    assert cli.distribution_of(module, REPORTS) == distribution


def test_an_entry_of_no_plugin_is_listed_without_a_distribution(monkeypatch):
    registry = Registry("thing")
    registry.register("mine")(dict)
    monkeypatch.setattr(cli, "REGISTRIES", (registry,))
    assert ("thing", "mine", "builtins:dict", "-") in rows(call("plugins").stdout)
