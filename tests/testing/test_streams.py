"""Streams with something wrong do not conform."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch

from odeopt import Stream
from odeopt.testing import check_stream


def number(k):
    return torch.full((3,), float(k))


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, k):
        self.calls += 1
        return number(k)


class Counted(Counting):
    """Numbers its calls, which its settings leave out."""

    def settings(self):
        return {}


@pytest.mark.parametrize("stream", [
    Stream(number), Stream(lambda k: {"x": number(k), "names": "ab", "n": None}), Stream(Counted()),
    Stream(lambda k: number(k) / 0 * 0, length=1),  # of NaN
    Stream(lambda k: torch.randn(2), seed=1),
])  # fmt: skip
def test_a_right_stream_conforms(device, stream):
    check_stream(stream, device=device)


class Handle:
    """A thing that batches carry along, and that notes its use in itself."""

    def __init__(self):
        self.used = 0

    def __call__(self, k):
        self.used += 1
        return {"x": number(k), "handle": self}

    def settings(self):
        return {}


def test_a_leaf_that_is_the_same_object_may_change(device):
    check_stream(Stream(Handle()), device=device)


def test_the_last_batch_is_looked_at():
    asked = []
    check_stream(Stream(lambda k: asked.append(k) or number(k), length=50), steps=3)
    assert set(asked) == {0, 1, 2, 49}


class Buffer:
    def __init__(self):
        self.buffer = torch.zeros(3)

    def __call__(self, k):
        return self.buffer.fill_(k)


class Running:
    """The next of a sequence, whatever is asked for."""

    def __init__(self):
        self.k = 0.0

    def __call__(self, k):
        self.k += 1
        return number(self.k)

    def settings(self):
        return {}


class Racing:
    def __call__(self, k):
        self.k = k
        time.sleep(0.002)
        return number(self.k)

    def settings(self):
        return {}


class Forgetful:
    """Loses a number when it is pickled."""

    def __init__(self):
        self.shift = 1.0

    def __call__(self, k):
        return number(k) + self.shift

    def __getstate__(self):
        return {"shift": 0.0}


@pytest.mark.parametrize(("batch", "message"), [
    (lambda k: torch.randn(3), "draws random numbers of torch"),
    (lambda k: torch.full((3,), random.random()), "draws random numbers of Python's random"),
    (lambda k: torch.from_numpy(np.random.rand(3)), "draws random numbers of numpy"),
    (Running(), "batch 10007 differs when it is asked for again: it must depend on the index"),
    (Buffer(), "batch 0 changes when other batches are made"),
    (lambda k: number(k) if k < 4 else [number(k)], r"batch 4 has the structure .*but batch 0 has"),
    (lambda k: torch.zeros(3 if k < 4 else 2), r"batch 4 has .*\(2,\).* where batch 0 has .*\(3,"),
    (lambda k: number(k) if k < 4 else number(k).float(), "batch 4 has .*float32.* where batch 0"),
    (lambda k: (number(k), k), "batch 1 has .* where batch 0 has"),
    (lambda k: number(k).requires_grad_(), "a tensor of batch 0 requires grad"),
    (lambda k: [number(i) for i in range(10)][k], r"batch 10 cannot be made.*None: IndexError"),
    (Racing(), "differs when several threads ask for batches at once"),
    (Forgetful(), "a copy of the stream by pickle gives another batch"),
    (Counting(), "the description of the stream.*changes when batches are made"),
])  # fmt: skip
def test_a_batch_with_something_wrong_is_told(batch, message):
    with pytest.raises(AssertionError, match=message):
        check_stream(Stream(batch))


@pytest.mark.parametrize("length", [0, -1, 2.5])
def test_a_length_that_is_none_is_told(length):
    with pytest.raises(AssertionError, match=f"length is {length}; expected None or a positive"):
        check_stream(Stream(number, length=length))


def test_a_stream_that_ends_before_its_length_is_told():
    with pytest.raises(AssertionError, match="batch 8 cannot be made, though length is 9"):
        check_stream(Stream([number(k) for k in range(8)].__getitem__, length=9), steps=2)


def test_what_is_no_stream_is_told():
    with pytest.raises(AssertionError, match="is not a Stream"):
        check_stream([torch.zeros(2)])
