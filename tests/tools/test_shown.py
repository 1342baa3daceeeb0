"""Objects as short text: their choices, shapes and single numbers, and nothing else."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import odeopt
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.shown import INSIDE, LONGEST, Shown, call, norm, number, shown


def loss(params, batch, hparams=None):
    return (params - batch).square().sum()


class Broken:
    def __repr__(self):
        raise ValueError("broken")

    def __getattr__(self, name):
        raise (ValueError if name == "__qualname__" else AttributeError)(name)


@dataclass(frozen=True)
class Plain:
    other: object


class Plugin(KnownKeywords):
    def __init__(self, rate, steps=3, own=None, other=0.0):
        self.rate, self._steps, self._hidden = rate, steps, own
        self._parts = Plain(other)


@dataclass(frozen=True)
class Fields(KnownKeywords):
    x: object
    y: float = 1.0


class Holding(Shown):
    def __init__(self, part=None):
        self.part = part


@pytest.mark.parametrize(("value", "text"), [
    (torch.tensor(0.5), "tensor(0.5)"), (torch.tensor(3), "tensor(3)"),
    (torch.tensor(float("nan")), "tensor(nan)"), (torch.ones(2, 3), "tensor of shape [2, 3]"),
    (torch.ones(1), "tensor of shape [1]"), (torch.zeros((), device="meta"), "tensor of shape []"),
    (np.ones(3), "array of shape [3]"), (torch.nn.Linear(2, 1), "Linear(...)"),
    ([1, 0.1, None], "[1, 0.1, None]"), ((1,), "(1,)"), ({"a": torch.ones(2)}, "{'a': tensor of sha"
     "pe [2]}"), (list(range(9)), "[0, 1, 2, 3, 4, 5, ...]"), (loss, "loss"), (len, "len"),
    (torch.optim.Adam, "Adam"), (functools.partial(loss, hparams=2), "partial(loss, hparams=2)"),
    (Path("a/b"), "'a/b'"), (Broken(), "Broken(...)"), (Plain(torch.ones(3)), "Plain(...)"),
    (torch.float32, "torch.float32"), ([[[[[1]]]]], "[[[[...]]]]"), (True, "True"),
    (torch.optim.SGD([torch.ones(2)], 0.1), "SGD(...)"), ({1}, "set(1)"),
])  # fmt: skip
def test_a_value_is_one_short_text(value, text):
    assert shown(value) == text


TREES = st.recursive(
    st.none() | st.floats() | st.text() | st.binary() | st.integers().map(lambda n: 10**200 + n)
    | st.just(torch.full((3,), 0.123456)) | st.just(loss),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside) | inside.map(Holding)
    | inside.map(lambda part: Plugin(part, own=part)),
)  # fmt: skip


@given(TREES)
def test_whatever_it_is_it_fits_in_a_line_and_has_no_numbers_of_tensors(value):
    for text, most in ((shown(value), INSIDE), (repr(Holding(value)), LONGEST)):
        assert len(text) <= most
        assert "\n" not in text
        assert "0.1234" not in text


def test_arguments_that_differ_from_their_defaults_are_shown():
    assert repr(Plugin(0.1)) == "Plugin(0.1)"
    assert repr(Plugin(0.1, 4, own=2, other=1.5)) == "Plugin(0.1, steps=4, other=1.5)"
    assert repr(Plugin(None, other=torch.ones(2))) == "Plugin(rate=None, other=tensor of shape [2])"
    assert repr(Fields(torch.ones(2))) == "Fields(tensor of shape [2])"
    assert repr(Fields([1], y=2.0)) == "Fields([1], y=2.0)"


def test_a_representation_of_ones_own_is_kept_and_inherited():
    class Named(KnownKeywords):
        def __repr__(self):
            return "named"

    class Derived(Named):
        pass

    assert repr(Derived()) == "named"


def test_what_is_half_made_or_holds_itself_is_shown():
    assert repr(object.__new__(odeopt.ODEOptimizer)) == "ODEOptimizer(...)"
    assert repr(object.__new__(odeopt.SGD)) == "SGD(...)"
    ring = Holding()
    ring.part = [ring]
    assert repr(ring) == "Holding([...])"


def test_parts_that_do_not_fit_are_left_out_at_the_end():
    assert call("f", ["a" * 10, "b" * 10], limit=40) == f"f({'a' * 10}, {'b' * 10})"
    assert call("f", ["a" * 10, "b" * 10], limit=24) == f"f({'a' * 10}, ...)"
    assert len(call("f", ["a" * 300, "b"])) <= LONGEST


def test_numbers_and_norms(device):
    value = torch.tensor([3.0, 4.0], device=device)
    assert number(value[0]) == "3"
    assert number(value) == "tensor of shape [2], mean 3.5"
    assert norm("g", [value, 2 * value]) == ["|g|=11.18"]
    assert norm("g", []) == []
    assert norm("g", [value * float("nan")]) == ["|g|=nan"]


def test_inside_of_vmap_shapes_are_shown(device):
    seen = []

    def inside(x):
        seen.extend([shown(x[0]), number(x), *norm("x", [x])])
        seen.append(repr(odeopt.TimeGrid.from_lr(x[0], 2)))
        return x

    torch.func.vmap(inside)(torch.ones(2, 3, device=device))
    scalar, vector = "tensor of shape []", "tensor of shape [3]"
    assert seen == [scalar, vector, f"TimeGrid({scalar}, 2 steps)"]


REGISTERED = [
    (registry, name)
    for registry in (
        odeopt.FIELDS, odeopt.SOLVERS, odeopt.ADJOINTS, odeopt.CHECKPOINTS, odeopt.BACKENDS,
        odeopt.METHODS,
    )
    for name in registry.names()
]  # fmt: skip


@pytest.mark.parametrize(("registry", "name"), REGISTERED, ids=lambda part: str(part)[:30])
def test_examples_of_registries_are_shown_by_their_choices(registry, name):
    needs_loss = registry in (odeopt.FIELDS, odeopt.METHODS)
    text = repr(registry.example(name)(*[loss] * needs_loss))
    assert re.fullmatch(r"\w+\(.*\)", text)
    assert "object at" not in text
    assert len(text) <= LONGEST


@pytest.mark.parametrize(("value", "text"), [
    (odeopt.SGD(loss, momentum=0.9), "SGD(loss, momentum=0.9)"),
    (odeopt.Adam(loss, betas=(0.8, 0.9)), "Adam(loss, betas=(0.8, 0.9))"),
    (odeopt.GradientFlow(loss, weight_decay=0.1), "GradientFlow(loss, weight_decay=0.1)"),
    (odeopt.Adaptive(1e-3, max_steps=5), "Adaptive(0.001, max_steps=5)"),
    (odeopt.Adaptive(controller=odeopt.PIController(alpha=0.5)),
     "Adaptive(controller=PIController(alpha=0.5))"),
    (odeopt.StabilizedRK(), "StabilizedRK()"), (odeopt.StabilizedRK(stages=4), "StabilizedRK(stages"
     "=4)"), (odeopt.DiscreteAdjoint(), "DiscreteAdjoint()"),
    (odeopt.TruncatedAdjoint(4, odeopt.ForwardOverReverse()),
     "TruncatedAdjoint(4, differentiation=ForwardOverReverse())"),
    (odeopt.Every(3, odeopt.Host()), "Every(3, store=Host())"), (odeopt.Every(), "Every()"),
    (odeopt.Graphs(budget="2GiB"), "Graphs(budget='2 GiB')"),
    (odeopt.MemoryBudget("1MiB", host=55), "MemoryBudget('1 MiB', host='55 B')"),
    (odeopt.Safety(), "Safety()"), (odeopt.Safety(defect=None), "Safety(defect=None)"),
    (odeopt.TimeGrid.from_lr(0.1, 10, observe=[3]), "TimeGrid(0 to 1, 10 steps, observe=[3])"),
    (odeopt.TimeGrid.from_lr(torch.ones(2, 4)), "TimeGrid(0 to 4, 4 steps, 2 tasks)"),
    (odeopt.Stream(loss, seed=3), "Stream(batch=loss, seed=3)"),
    (odeopt.ODEOptimizer(odeopt.SGD(loss, momentum=0.9)),
     "ODEOptimizer(SGD(loss, momentum=0.9), DiscreteAdjoint(), Graphs())"),
    (odeopt.ODEOptimizer(odeopt.GradientFlow(loss), odeopt.RK4(), safety=odeopt.Safety(probe=False),
                         compile="trace"),
     "ODEOptimizer(GradientFlow(loss), RK4(), DiscreteAdjoint(), Graphs(),"
     " safety=Safety(probe=False), compile='trace')"),
    (odeopt.from_tolerance(odeopt.GradientFlow(loss), 1e-3),
     "ToleranceOptimizer(GradientFlow(loss), tol=0.001)"),
    (odeopt.Stats(), "Stats()"), (odeopt.Stats(steps=3, compile_seconds=0.12345),
     "Stats(steps=3, compile_seconds=0.1235)"),
])  # fmt: skip
def test_choices(value, text):
    assert repr(value) == text
