"""Tiers with something wrong do not conform."""

from __future__ import annotations

import pytest
import torch

from odeopt.checkpoint.store import Shelf, Tier, pack
from odeopt.testing import check_tier


class Copies(Shelf):
    """Copies of the states."""

    def __init__(self):
        self.states = {}

    def put(self, index, state):
        block, packing = pack(state)
        self.states[index] = packing.unpack(block.clone())

    def get(self, index):
        return self.states[index]

    def drop(self, index):
        del self.states[index]

    def close(self, done):
        self.states.clear()


class Elsewhere(Tier):
    kind = "elsewhere"

    def __init__(self, shelf=Copies):
        self.shelf = shelf

    def open(self):
        return self.shelf()


def test_a_right_tier_of_a_new_kind_conforms(device):
    check_tier(Elsewhere(), device)


class Single(Copies):
    def put(self, index, state):
        self.states[index] = state.float().to(state.dtype)


class Flat(Copies):
    def get(self, index):
        return self.states[index].reshape(-1)


class Finite(Copies):
    def put(self, index, state):
        super().put(index, state.nan_to_num())


class Positive(Copies):
    def put(self, index, state):
        super().put(index, state + 0.0)  # -0.0 becomes 0.0


class OfOneKind(Copies):
    def get(self, index):
        return self.states[index].double()


class InOrder(Copies):
    def put(self, index, state):
        self.states[index] = state.clone(memory_format=torch.contiguous_format)


class Repeated(Copies):
    def put(self, index, state):
        self.states[index] = state.clone()


class Gone(Copies):
    def get(self, index):
        return self.states[index].to("meta")


class Shortened(Copies):
    def put(self, index, state):
        super().put(index % 1000 if index > 1000 else index, state)

    def get(self, index):
        return super().get(index % 1000 if index > 1000 else index)


class First(Copies):
    def put(self, index, state):
        if index not in self.states:
            super().put(index, state)


class InPlace(Copies):
    def put(self, index, state):
        if index in self.states and self.states[index].shape == state.shape:
            self.states[index].copy_(state)
        else:
            super().put(index, state)


class ZeroedOnDrop(Copies):
    def drop(self, index):
        self.states.pop(index).zero_()


class ZeroedOnClose(Copies):
    def close(self, done):
        for state in self.states.values():
            state.zero_()
        super().close(done)


class Undropped(Copies):
    def drop(self, index):
        pass


class AllDropped(Copies):
    def drop(self, index):
        self.states = {key: state * 0 for key, state in self.states.items() if key != index}


class Unclosed(Copies):
    def close(self, done):
        if done:
            super().close(done)


class ClosedOnce(Copies):
    def close(self, done):
        del self.states


COMMON, ALIVE = {}, []


class Shared(Copies):
    def __init__(self):
        self.states = COMMON


class SharedClose(Copies):
    def __init__(self):
        super().__init__()
        ALIVE.append(self)

    def close(self, done):
        for shelf in ALIVE:
            shelf.states.clear()


class Rounding(Copies):
    def put(self, index, state):
        super().put(index, state * (1 + 1e-15) if state.shape == (13,) else state)


class RoundingTasks(Copies):
    def put(self, index, state):
        super().put(index, state * (1 + 1e-15) if state.shape == (2, 13) else state)


@pytest.mark.parametrize(("shelf", "message"), [
    (Single, r"\(torch.float64\) does not come back bit for bit"),
    (Flat, r"\(no dimensions\) of shape \(\) comes back as \(1,\)"),
    (Finite, "NaN.* does not come back bit for bit"),
    (Positive, "NaN, -0.* does not come back bit for bit"),
    (OfOneKind, "of torch.float32 comes back as torch.float64"),
    (InOrder, r"\(shape \[8, 3\], transposed\) with the strides \(1, 8\) comes back with \(3, 1\)"),
    (Repeated, r"\(one state for three tasks\) with the strides \(0, 1\) comes back with"),
    (Gone, "on cpu comes back on meta"),
    (Shortened, "state 0 is not the one that was put there"),
    (First, "put in place of another is not the one that comes back"),
    (InPlace, "a state that was taken changes with a later put"),
    (ZeroedOnDrop, "a state that was taken changes with drop"),
    (ZeroedOnClose, "a state that was taken changes with close"),
    (Undropped, "a state that was dropped can still be taken"),
    (AllDropped, "drop changes another state"),
    (Unclosed, "a state can still be taken after close"),
    (ClosedOnce, "a shelf that is closed twice raises AttributeError"),
    (Shared, "two shelves that are open at once take each other's states"),
    (SharedClose, "closing a shelf takes the states of another"),
    (Rounding, "a gradient is not that of states kept on the device"),
    (RoundingTasks, "a solve with the tier fails: the state before step . is not the same when"),
])  # fmt: skip
def test_a_shelf_with_something_wrong_is_told(shelf, message):
    with pytest.raises(AssertionError, match=message):
        check_tier(Elsewhere(shelf))


def test_what_is_no_tier_or_has_no_kind_is_told():
    with pytest.raises(AssertionError, match="3 is not a Tier"):
        check_tier(3)
    tier = Elsewhere()
    tier.kind = 3
    with pytest.raises(AssertionError, match="kind is 3; expected a text"):
        check_tier(tier)


def test_a_tier_that_looks_different_once_it_was_used_is_told():
    class Counting(Elsewhere):
        opened = 0

        def open(self):
            self.opened += 1
            return super().open()

        def settings(self):
            return {"kind": self.kind, "opened": self.opened}

    with pytest.raises(AssertionError, match=r"description of the tier.*let settings"):
        check_tier(Counting())
