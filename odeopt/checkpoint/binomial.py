"""Revolve: the least recomputation for a given number of slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import comb
from typing import NamedTuple, final

from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Free,
    Pull,
    Restore,
    Store,
    in_store,
)
from odeopt.checkpoint.store import Tier
from odeopt.registry import CHECKPOINTS
from odeopt.tools.arguments import check_integer


def reach(slots: int, repetitions: int) -> int:
    r"""$\beta(s, r) = \binom{s + r}{s}$: the steps that s slots reverse with r replays of each."""
    if slots < 0 or repetitions < 0:
        return 0
    return comb(slots + repetitions, slots)


def repetitions(steps: int, slots: int) -> int:
    r"""The r with $\beta(s, r - 1) < n \le \beta(s, r)$: how often a step is advanced at most."""
    r = 0
    while reach(slots, r) < steps:
        r += 1
    return r


def optimal_advances(steps: int, slots: int) -> int:
    r"""$t(n, s) = r n - \beta(s + 1, r - 1)$, the least number of advances to reverse n steps.

    It counts the first sweep up to state n - 1.

    References:
        Griewank and Walther 2000, "Algorithm 799: Revolve", ACM TOMS 26(1).
    """
    r = repetitions(steps, slots)
    return r * steps - reach(slots + 1, r - 1)


def optimal_replays(steps: int, slots: int) -> int:
    """The least number of steps that the backward sweep must replay: t(n, s) - (n - 1)."""
    return max(optimal_advances(steps, slots) - (steps - 1), 0)


def split(steps: int, slots: int) -> int:
    """Where the next state is kept on the way through `steps` steps with `slots` slots free."""
    r = repetitions(steps, slots)
    small, smaller = reach(slots - 1, r - 1), reach(slots - 2, r - 1)
    if steps <= reach(slots, r - 1) + smaller:
        return max(reach(slots, r - 2), 1)
    if steps < reach(slots, r - 1) + small + smaller:
        return steps - small - smaller
    return reach(slots, r - 1)


@final
@CHECKPOINTS.register("binomial", example=lambda: Binomial(3))
class Binomial(CheckpointSchedule):
    r"""Revolve's schedule: at most `slots` kept states, and the fewest replayed steps.

    Cost: N steps with s slots replay $r N - \beta(s + 1, r - 1) - (N - 1)$ steps, about r - 1 each,
    where r is the least number with $N \le \binom{s + r}{s}$. The state before the last step is
    still there when the backward sweep begins and is not replayed.

    Args:
        slots: the number of kept states, the initial one included.
        store: where they are kept; `Device()` by default.

    Raises:
        InputError: if slots is not a positive integer.

    References:
        Griewank and Walther 2000, "Algorithm 799: Revolve", ACM TOMS 26(1).
    """

    is_mesh = False
    needs_length = True

    def __init__(self, slots: int, store: Tier | None = None) -> None:
        self.slots = check_integer(slots, "slots")
        self.tiers = in_store(store)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        assert n is not None, "needs_length"
        start, slots = 0, self.slots
        while n - start > 1 and slots > 1:
            yield Store(start)
            stop = start + split(n - start, slots)
            yield Advance(start, stop)
            start, slots = stop, slots - 1
        yield Store(start)
        yield Advance(start, n)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return reverse_gaps(kept, n, self.slots)


def reverse_gaps(kept: Sequence[int], n: int, slots: int) -> Iterator[Action]:
    """Pull every step with Revolve inside each gap between kept states, the newest first.

    A gap has the slots that are free by then: all but those of the states kept before it.
    """
    todo: list[_Part | Free] = []  # a stack instead of recursion, as deep as there are slots
    for older, (start, stop) in enumerate(pairwise([*kept, n])):
        todo += [Free(start), _Part(start, stop, slots - older)]
    while todo:
        part = todo.pop()
        if isinstance(part, Free):
            yield part
        elif part.slots == 1 or part.stop - part.start == 1:
            yield from _reverse_from_one(part.start, part.stop, n)
        else:
            middle = part.start + split(part.stop - part.start, part.slots)
            yield from _place(part.start, middle)
            todo += [part._replace(stop=middle), Free(middle)]
            todo.append(_Part(middle, part.stop, part.slots - 1))


class _Part(NamedTuple):
    """The steps start..stop-1, to be reversed with `slots` slots; the state `start` is kept."""

    start: int
    stop: int
    slots: int


def _place(start: int, middle: int) -> Iterator[Action]:
    yield Restore(start)
    yield Advance(start, middle)
    yield Store(middle)


def _reverse_from_one(start: int, stop: int, n: int) -> Iterator[Action]:
    for index in range(stop - 1, start - 1, -1):
        if index < n - 1:  # the running state is at n - 1 when the sweep begins
            yield Restore(start)
            if index > start:
                yield Advance(start, index)
        yield Pull(index, index + 1)
