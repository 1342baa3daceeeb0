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
from odeopt.tools import plugins as plugins_module
from odeopt.tools.plugins import Plugins

REPORTS = [
    PluginReport("mine", "company.first.entries:setup", "company-first", "1.0", None),
    PluginReport("yours", "company.second.entries", "company-second", "2.0", None),
]


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """The installed entry points and one more, whose module raises an error of two lines."""
    said = "no licence:\\n  ask for one, " + "please, " * 100
    (tmp_path / "raising_plugin.py").write_text(f"raise RuntimeError('{said}')")
    monkeypatch.syspath_prepend(tmp_path)
    installed = plugins_module.entry_points(group=ENTRY_POINT_GROUP)
    points = [EntryPoint("raising", "raising_plugin", ENTRY_POINT_GROUP), *installed]
    monkeypatch.setattr(registry_module, "PLUGINS", Plugins())
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: points)


def call(*arguments):
    return CliRunner().invoke(cli.app, arguments)


def rows(text):
    """The cells of each line."""
    return {tuple(re.split(r"\s{2,}", line.rstrip())) for line in text.splitlines()}


def registered(text):
    """The rows of the tables of each kind, with the kind first."""
    tables = [table.splitlines() for table in text.partition("Registered:\n\n")[2].split("\n\n")]
    return {
        (re.split(r"\s{2,}", head)[0], *row)
        for head, *lines in tables
        for row in rows("\n".join(lines))
    }


def test_the_built_in_plugin_is_listed_as_loaded():
    result = call("plugins")
    assert result.exit_code == 0
    expected = ("builtin", "odeopt_plugins", "odeopt", odeopt.__version__, "loaded")
    assert expected in rows(result.stdout)


@pytest.mark.parametrize("row", [
    ("field", "gradient-flow", "odeopt", "odeopt.inner.flows:GradientFlow"),
    ("field", "nesterov-flow", "odeopt", "odeopt_plugins.nesterov_flow:NesterovFlow"),
    ("solver", "rk4", "odeopt", "odeopt.solver.runge_kutta:RK4"),
    ("adjoint", "continuous-rk4", "odeopt", "odeopt.adjoint.continuous:ContinuousAdjoint"),
    ("checkpoint schedule", "every", "odeopt", "odeopt.checkpoint.uniform:Every"),
    ("method", "maml", "odeopt", "odeopt_plugins.maml:maml"),
])  # fmt: skip
def test_entries_of_each_kind_are_listed_with_where_they_come_from(row):
    assert row in registered(call("plugins").stdout)


def test_every_registered_name_is_listed():
    listed = {row[:2] for row in registered(call("plugins").stdout)}
    assert {(r.kind, name) for r in cli.REGISTRIES for name in r.names()} == listed


def test_a_broken_plugin_is_shown_with_its_error_and_nothing_else_is_missing(broken):
    result = call("plugins")
    assert result.exit_code == 1
    cells = ("raising", "raising_plugin", "unknown", "unknown", "failed: RuntimeError: no licence:")
    assert " ".join(cells) + " ask for one, please," in " ".join(result.stdout.split())
    built_in = ("builtin", "odeopt_plugins", "odeopt", odeopt.__version__, "loaded")
    assert built_in in rows(result.stdout)
    row = ("method", "maml", "odeopt", "odeopt_plugins.maml:maml")
    assert row in registered(result.stdout)


def test_lines_have_at_most_80_characters_and_a_long_error_is_cut(broken):
    text = call("plugins").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert 40 < text.count("please,") < 80


def test_without_plugins_the_entries_of_odeopt_are_listed(monkeypatch):
    monkeypatch.setattr(registry_module, "PLUGINS", Plugins())
    monkeypatch.setattr(plugins_module, "entry_points", lambda group: ())
    result = call("plugins")
    assert result.exit_code == 0
    row = ("solver", "euler", "odeopt", "odeopt.solver.runge_kutta:Euler")
    assert row in registered(result.stdout)


def test_columns_are_aligned():
    assert cli.aligned([("a", "bb", "c"), ("ddd", "e", "f")]) == "a    bb  c\nddd  e   f"


def test_the_last_column_is_wrapped_and_has_some_room_in_any_case():
    assert cli.aligned([("a" * 50, "words of " + "b" * 20)]).splitlines() == [
        "a" * 50 + "  words of",
        " " * 52 + "b" * 20,
    ]
    assert cli.aligned([("a" * 90, "b" * 25)]).splitlines()[1] == " " * 92 + "b" * 5
    assert cli.aligned([("a" * 40, "company.first.entries:ALongNameOfAClass")]).splitlines() == [
        "a" * 40 + "  company.first.entries:",
        " " * 42 + "ALongNameOfAClass",
    ]
    assert cli.aligned([("a", "")]) == "a"


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


def test_the_source_of_what_has_no_module_is_that_of_its_type():
    assert cli.source("".join) == ("builtins", "str.join")


def test_the_source_of_what_cannot_be_asked_is_that_of_its_type():
    class Silent(Callme):
        def __getattr__(self, name):
            raise RuntimeError(name)

    assert cli.source(Silent()) == (__name__, Silent.__qualname__)


@pytest.mark.parametrize(("module", "distribution"), [
    ("company.first.fields", "company-first"), ("company.first.entries", "company-first"),
    ("company.second.fields", "company-second"), ("odeopt.inner.field", "odeopt"),
    ("companyfirst", "-"), ("__main__", "-"),
])  # fmt: skip
def test_the_distribution_is_that_of_the_nearest_plugin(module, distribution):
    assert cli.distribution_of(module, REPORTS) == distribution


def test_an_entry_of_no_plugin_is_listed_without_a_distribution(monkeypatch):
    registry = Registry("thing")
    registry.register("mine")(dict)
    monkeypatch.setattr(cli, "REGISTRIES", (registry,))
    assert registered(call("plugins").stdout) == {("thing", "mine", "-", "builtins:dict")}
