"""The names that odeopt exports, and their signatures."""

from __future__ import annotations

import inspect
import re
import types
from difflib import unified_diff

import pytest
from support.public_api import SNAPSHOT, describe, describe_entry

import odeopt
from odeopt import errors

OBJECTS = [getattr(odeopt, name) for name in odeopt.__all__ if name != "__version__"]
PUBLIC = [entry for entry in OBJECTS if inspect.isclass(entry) or inspect.isfunction(entry)]
CLASSES = [entry for entry in PUBLIC if inspect.isclass(entry)]
ERRORS = [
    entry
    for entry in vars(errors).values()
    if inspect.isclass(entry)
    and issubclass(entry, Exception)
    and entry.__module__ == "odeopt.errors"
]


def _name(entry):
    return getattr(entry, "__name__", str(entry))


def _module(member):
    return getattr(member, "__module__", None) or ""


def test_names_and_signatures_are_those_of_the_snapshot():
    before, now = SNAPSHOT.read_text().splitlines(), describe().splitlines()
    changes = [line for line in unified_diff(before, now, n=0, lineterm="") if line[0] in "+-"][2:]
    assert changes == [], (
        "the public API is not that of tests/public_api.txt. If the change is meant, run `python"
        " tests/support/public_api.py`, add a line to CHANGELOG.md, and commit both."
    )


def test_the_snapshot_would_notice_a_changed_default():
    def solve(a: int, b: float = 1.0) -> None: ...

    def changed(a: int, b: float = 2.0) -> None: ...

    assert describe_entry("solve", solve) == ["solve(a: int, b: float = 1.0) -> None"]
    assert describe_entry("solve", changed) != describe_entry("solve", solve)


def test_each_name_is_there_once():
    assert len(set(odeopt.__all__)) == len(odeopt.__all__)
    assert all(hasattr(odeopt, name) for name in odeopt.__all__)


def test_nothing_else_public_is_visible():
    visible = {
        name
        for name, value in vars(odeopt).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible == set(odeopt.__all__) - {"__version__"}


def test_the_version_is_a_release_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", odeopt.__version__)


def test_the_changelog_has_an_entry_for_the_version_or_for_what_comes():
    text = (SNAPSHOT.parents[1] / "CHANGELOG.md").read_text()
    sections = re.split(r"^## \[(.+?)\].*$", text, flags=re.MULTILINE)[1:]
    entries = dict(zip(sections[::2], sections[1::2], strict=True))
    written = [name for name, body in entries.items() if re.search(r"^- \S", body, re.MULTILINE)]
    assert {"Unreleased", odeopt.__version__} & set(written)
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("entry", PUBLIC, ids=_name)
def test_each_export_has_a_docstring_of_its_own(entry):
    doc = entry.__dict__.get("__doc__") if inspect.isclass(entry) else entry.__doc__
    assert doc
    assert doc.strip()
    assert not doc.startswith(f"{entry.__name__}(")  # what a dataclass writes itself


@pytest.mark.parametrize("entry", CLASSES, ids=_name)
def test_each_public_method_has_a_docstring(entry):
    methods = [
        (name, member)
        for name, member in inspect.getmembers(entry, inspect.isroutine)
        if not name.startswith("_") and _module(member).startswith("odeopt")
    ]
    assert [name for name, member in methods if not inspect.getdoc(member)] == []


@pytest.mark.parametrize("entry", ERRORS, ids=_name)
def test_each_error_is_an_odeopt_error_and_exported(entry):
    expected = Warning if entry.__name__.endswith("Warning") else odeopt.OdeoptError
    assert issubclass(entry, expected)
    assert getattr(odeopt, entry.__name__) is entry


@pytest.mark.parametrize(("error", "builtin"), [
    (odeopt.InputError, ValueError), (odeopt.CompatibilityError, ValueError),
    (odeopt.DivergenceError, ArithmeticError), (odeopt.StabilityError, ArithmeticError),
    (odeopt.SecondOrderError, NotImplementedError), (odeopt.UnknownNameError, KeyError),
])  # fmt: skip
def test_errors_can_be_caught_as_their_built_in_kind(error, builtin):
    assert issubclass(error, builtin)


def test_the_module_docstring_of_errors_lists_each_of_them():
    assert all(entry.__name__ in errors.__doc__ for entry in ERRORS)
