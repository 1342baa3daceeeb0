"""Objects with the same settings have the same description, others another."""

from __future__ import annotations

import enum
import functools
import logging
import operator
import os
import subprocess
import sys
import threading
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from odeopt import CompatibilityError
from odeopt.tools.describing import describe, describe_leniently, describe_with_captures


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Pair:
    first: object
    second: object = None


@dataclass
class Remembering:
    rate: float
    seen: set[str] = field(default_factory=set, compare=False)


@dataclass(frozen=True, slots=True)
class Narrow:
    first: object


Point = namedtuple("Point", "x y")


class Plain:
    def __init__(self, **settings):
        vars(self).update(settings)

    def __call__(self, x):
        return x


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden, shown):
        self.__hidden, self.shown = hidden, shown


class Derived(Slotted):
    """With a dictionary beside the slots of its base."""


class Listing(list):
    pass


def function(x, rate=0.1):
    return rate * x


def returns(constant):
    return eval(f"lambda x: x + {constant}")


def captures(value):
    return lambda x: x + value


def derived(hidden, shown, **more):
    found = Derived(hidden, shown)
    vars(found).update(more)
    return found


def listing(items, **more):
    found = Listing(items)
    vars(found).update(more)
    return found


DIFFERENT = {
    "numbers": (1, 2), "kinds of numbers": (1, 1.0, True), "zeros": (0.0, -0.0),
    "strings": ("a", "b", b"a"), "quotes": (["a, b"], ["a", "b"]), "none": (None, "None"),
    "enums": (Colour.RED, Colour.BLUE), "paths": (Path("a"), Path("b")),
    "dtypes": (torch.float32, torch.float64), "layouts": (torch.strided, torch.sparse_coo),
    "devices": (torch.device("cpu"), torch.device("cuda", 1)),
    "tensors": (torch.zeros(2), torch.ones(2), torch.zeros(1, 2), torch.zeros(2).half()),
    "arrays": (np.zeros(2), np.ones(2), np.zeros((1, 2)), np.zeros(2, np.float32)),
    "array scalars": (np.float64(1), np.float64(2), np.float32(1)),
    "lists": ([1, 2], [2, 1], (1, 2), [1, [2]]), "dictionaries": ({"a": 1}, {"a": 2}, {"b": 1}),
    "sets": ({1, 2}, {1, 3}, frozenset({1, 2})), "queues": (deque([1]), deque([2])),
    "dataclasses": (Pair(1), Pair(2), Pair(1, 1)), "narrow ones": (Narrow(1), Narrow(2)),
    "named tuples": (Point(1, 2), Point(2, 1), (1, 2)),
    "dates": (date(2020, 1, 1), date(2020, 1, 2)), "fractions": (Fraction(1, 2), Fraction(1, 3)),
    "objects": (Plain(a=1), Plain(a=2), Plain(b=1), Plain()),
    "slots": (Slotted(1, 2), Slotted(2, 1), Slotted(1, 3)),
    "slots and more": (derived(1, 2), derived(3, 2), derived(1, 2, a=1)),
    "lists and more": (listing([1]), listing([2]), listing([1], a=1)),
    "deep ones": tuple(functools.reduce(lambda x, _: Plain(a=[x]), range(40), n) for n in (1, 2)),
    "classes": (Plain, Slotted, Plain()), "modules of Python": (os, sys),
    "functions": (function, returns(1), returns(2)), "built-in ones": (torch.tanh, torch.sin, len),
    "defaults": (captures.__class__(function.__code__, {}), function),
    "bound methods": (Plain(a=1).__call__, Plain(a=2).__call__, [].append, [1].append),
    "partials": tuple(functools.partial(function, rate=rate) for rate in (0.1, 0.2)),
    "selectors": (operator.itemgetter("a"), operator.itemgetter("b")),
    "cached functions": (functools.cache(function), functools.cache(returns(1))),
    "layers": (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Identity()),
    "settings of layers": (nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout(0.1).eval()),
    "weights": (nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))),
    "orders of layers": tuple(
        nn.Sequential(OrderedDict((name, layer()) for name, layer in order))
        for order in ([("a", nn.ReLU), ("b", nn.Tanh)], [("b", nn.Tanh), ("a", nn.ReLU)])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_is_told_apart(name):
    texts = [describe(value) for value in DIFFERENT[name]]
    assert len(set(texts)) == len(texts)
    assert texts == [describe_leniently(value) for value in DIFFERENT[name]]


def make():
    """Many objects, the same in each process."""
    torch.manual_seed(3)
    ring = [1]
    ring.append(Plain(back=ring))
    lstm = nn.LSTM(2, 3)
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(function)
    return [
        {"names", "in", "any", "order"}, frozenset({Colour.RED, "a"}), ring, lstm, hooked,
        nn.BatchNorm1d(3), Pair(function, [Slotted(1, torch.ones(3))]), logging.getLogger("odeopt"),
        captures(1), functools.partial(function, 3, rate=2.0), np.random.default_rng(0), object(),
    ]  # fmt: skip


def test_it_is_the_same_in_another_process():
    script = "from tests.tools.test_describing import describe, make; print(describe(make()))"
    texts = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True,
            text=True, env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).resolve().parents[2],
        )  # fmt: skip
        texts.add(done.stdout)
    assert len(texts) == 1


def test_the_same_made_again_is_the_same(device):
    assert describe(make()) == describe(make())
    wide = torch.arange(6.0, device=device).reshape(2, 3)
    assert describe(wide.T) == describe(wide.T.contiguous()) != describe(wide)
    assert describe(torch.ones(1, device=device).expand(3)) == describe(torch.ones(3))


def test_what_a_function_has_captured_does_not_count():
    one, other = captures(1), captures(2)
    assert describe(one) == describe(other)
    assert describe([one, one]) == describe([one, other])


FACTOR = 1.0


def uses_a_global(params, batch):
    return FACTOR * params


@pytest.mark.parametrize("value", [2, 2.5, [1, 3], np.arange(2), torch.ones(2), nn.Linear(1, 2)])
def test_what_a_function_has_captured_counts_where_it_is_asked_for(value):
    one, other = captures(1), captures(value)
    assert describe_with_captures(one) == describe_with_captures(captures(1))
    assert describe_with_captures(one) != describe_with_captures(other)
    inside = functools.partial(captures(other), lr=0.1), functools.partial(captures(one), lr=0.1)
    assert describe_with_captures(inside[0]) != describe_with_captures(inside[1])


def test_texts_and_devices_that_a_function_has_captured_do_not_count():
    for one, other in [("cuda:0", "cuda:1"), (torch.device("cuda:0"), torch.device("cuda:1"))]:
        texts = describe_with_captures(captures(one)), describe_with_captures(captures(other))
        assert texts[0] == texts[1]


def test_a_global_number_counts(monkeypatch):
    before = describe_with_captures(uses_a_global)
    monkeypatch.setitem(uses_a_global.__globals__, "FACTOR", 2.0)
    assert describe_with_captures(uses_a_global) != before


def test_tensors_may_be_described_without_their_values():
    zeros, ones = captures(torch.zeros(2)), captures(torch.ones(2))
    assert describe_with_captures(zeros, contents=False) == describe_with_captures(ones, False)
    shape = describe_with_captures(captures(torch.ones(3)), False)
    assert shape != describe_with_captures(ones, False)


def test_what_an_object_says_itself_counts():
    class Counting(Plain):
        def settings(self):
            return {"rate": self.rate}

    one, again, other = Counting(rate=1, calls=1), Counting(rate=1, calls=2), Counting(rate=2)
    assert describe([one]) == describe([again]) != describe([other])
    assert describe(one.__call__) == describe(again.__call__) != describe(other.__call__)


def test_a_field_that_does_not_count_in_comparisons_does_not_count_here():
    text = describe(Remembering(0.1))
    assert describe(Remembering(0.1, {"a call"})) == text != describe(Remembering(0.2))


def test_many_references_to_each_other_are_followed_once():
    objects = [Plain() for _ in range(60)]
    for one in objects:
        one.others = objects
    text = describe(objects)
    objects[-1].a = 1
    assert describe(objects) != text


class Odd:
    def settings(self):
        return [1]


class Needy:
    def settings(self, name):
        return {}


def nested():
    found = []
    for _ in range(5000):
        found = [found]
    return found


@pytest.mark.parametrize(("value", "message"), [
    (threading.Lock(), r"the field\.a, a _thread\.lock, cannot be compared"),
    ((i for i in ()), r"the field\.a, a builtins\.generator"),
    ([{"x": sys.stdout}], r"the field\.a\[0\]\['x'\], a .*give its class"),
    (torch.zeros(2, device="meta"), r"a torch\.Tensor, cannot be compared"),
    (torch.eye(2).to_sparse(), r"a torch\.Tensor, cannot be compared"),
    (Odd(), r"its settings\(\) returns a builtins\.list"),
    (Needy(), r"its settings\(\) fails \(.*'name'\)"),
    (nested(), "it is nested too deeply"),
])  # fmt: skip
def test_what_cannot_be_described_is_refused_or_known_by_its_type(value, message):
    holder = Plain(a=value)
    with pytest.raises(CompatibilityError, match=f"(?i){message}") as caught:
        describe(holder, "the field")
    assert "method settings()" in str(caught.value)
    assert describe_leniently(holder) == describe_leniently(holder)


def test_contents_that_are_not_wanted_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(np, "ascontiguousarray", None)
    assert describe_with_captures([np.arange(4), np.ones(3)], contents=False)
