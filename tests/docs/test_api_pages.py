"""Every public name has its place in the API pages, with equation, shapes, cost, errors, source."""

from __future__ import annotations

import inspect
import re
from collections import Counter

import pytest
from support.pages import DOCS

import odeopt
import odeopt.testing
from odeopt.adjoint.base import Adjoint, LocalAdjoint
from odeopt.adjoint.implicit import LinearSolver
from odeopt.adjoint.linearize import Differentiation
from odeopt.checkpoint import CheckpointSchedule
from odeopt.inner.base import InnerOptimizer
from odeopt.solver import Solver, StepSolver

PAGES = sorted(path for path in (DOCS / "api").glob("*.md") if path.name != "index.md")
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
ENTRIES = Counter(entry for page in PAGES for entry in ENTRY.findall(page.read_text()))
PUBLIC = [f"odeopt.{name}" for name in odeopt.__all__]
PUBLIC += [f"odeopt.testing.{name}" for name in odeopt.testing.__all__]
LABELS = ("Equation", "Shapes", "Cost", "Errors", "Source")
KINDS = (InnerOptimizer, Solver, Adjoint, CheckpointSchedule, LinearSolver, Differentiation)
EXPORTS = [getattr(odeopt, name) for name in odeopt.__all__]
ALGORITHMS = [
    entry
    for entry in EXPORTS
    if inspect.isclass(entry) and issubclass(entry, KINDS) and not inspect.isabstract(entry)
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_on_one_page(name):
    assert ENTRIES[name] == 1, "add `::: name` to the page of its concept in docs/api"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_what_readers_look_for(page):
    text = page.read_text()
    found = re.findall(r"^- \*\*(\w+)\.\*\* \S", text, re.MULTILINE)
    assert tuple(found) == LABELS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_overview_lists_the_names_of_a_page(page):
    overview = (DOCS / "api" / "index.md").read_text()
    row = next(line for line in overview.splitlines() if f"]({page.name})" in line)
    names = [entry.rpartition(".")[2] for entry in ENTRY.findall(page.read_text())]
    assert re.findall(r"`(\w+)`", row) == names


@pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.__name__)
def test_an_algorithm_says_what_it_costs_and_where_it_comes_from(entry):
    doc = inspect.getdoc(entry)
    assert re.search(r"\b[Cc]osts?\b", doc)
    assert "References:" in doc


@pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.__name__)
def test_an_algorithm_has_an_equation(entry):
    counts = issubclass(entry, CheckpointSchedule)  # these say how many states and steps
    assert counts or "$" in inspect.getdoc(entry)


@pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.__name__)
def test_an_algorithm_with_arguments_describes_each_and_its_errors(entry):
    doc, parameters = inspect.getdoc(entry), inspect.signature(entry).parameters
    inherited = "costs and arguments are those of" in doc
    undescribed = [name for name in parameters if f"    {name}: " not in doc]
    assert undescribed == [] or inherited
    simple = set(parameters) <= {"differentiation"}
    assert simple or inherited or "Raises:" in doc


def test_no_docstring_holds_what_a_browser_takes_for_a_tag():
    classes = [entry for entry in EXPORTS if inspect.isclass(entry)] + [StepSolver, LocalAdjoint]
    members = [
        member for entry in classes for base in entry.__mro__ for member in vars(base).values()
    ]
    own = [
        m for m in [*classes, *members] if str(getattr(m, "__module__", "")).startswith("odeopt")
    ]
    docs = {inspect.getdoc(entry) or "" for entry in own}
    shown = [re.sub(r"`[^`]*`|\$[^$]*\$", "", doc) for doc in docs]
    assert len(shown) > 100
    assert [doc for doc in shown if re.search(r"<[A-Za-z]", doc)] == []
