"""Checkpoints for a solve whose length is known only at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Free,
    Store,
    in_store,
    run_through,
)
from odeopt.checkpoint.binomial import reach, reverse_gaps
from odeopt.checkpoint.store import Tier
from odeopt.registry import CHECKPOINTS
from odeopt.tools.arguments import check_integer

FINENESS = 8
"""How many times finer than `slots` even parts of the way states may be kept: with more of it
states are stored more often, and replays save below one per cent."""


@final
@CHECKPOINTS.register("online", example=lambda: Online(3))
class Online(CheckpointSchedule):
    r"""At most `slots` kept states, placed while nobody knows how many steps there will be.

    For `Adaptive` and whatever else finds its length on the way. Forward, a state is kept when
    Revolve could not reverse the newest gap any more without one more replay of each step; when
    all slots are taken, the kept state goes whose two gaps make the shortest one together that
    Revolve can still reverse: with j states kept before it, s slots and r sweeps at most
    $\binom{s - j + r - 1}{r - 1}$ steps. Backward, when the length is known, Revolve reverses each
    gap with the slots that are free by then.

    Cost: the first sweep and the replays together are 1.00 to 1.28 times the optimum for a known
    length, 1.02 on average (all n to 1500); the worst cases are solves of ten steps with two or
    three slots. About $8 s \log(N / s)$ states are
    stored on the way.

    Args:
        slots: the number of kept states, the initial one included.
        store: where they are kept; `Device()` by default.

    Raises:
        InputError: if slots is not a positive integer.

    References:
        Wang, Moin and Iaccarino 2009, "Minimal repetition dynamic checkpointing algorithm for
        unsteady adjoint calculation", SIAM J. Sci. Comput. 31(4): states become dispensable as
        the number of sweeps grows.
    """

    is_mesh = False
    needs_length = False

    def __init__(self, slots: int, store: Tier | None = None) -> None:
        self.slots = check_integer(slots, "slots")
        self.tiers = in_store(store)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        thinning = Thinning(self.slots)
        for index in run_through(n):
            if thinning.wants(index):
                for other in thinning.take(index):
                    yield Free(other)
                yield Store(index)
            yield Advance(index, index + 1)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return reverse_gaps(kept, n, self.slots)


class Thinning:
    """Which states are kept on the way."""

    def __init__(self, slots: int) -> None:
        self.kept: list[int] = []
        self._slots = slots
        self._sweeps = 1

    def wants(self, index: int) -> bool:
        """Whether the state at an index is to be kept, unless it can be done without."""
        if not self.kept:
            return True
        gap = index - self.kept[-1]
        if self._slots == 1 or gap * FINENESS * self._slots < index:
            return False
        while gap + 1 > self._longest(len(self.kept) - 1):
            if len(self.kept) < self._slots or self._dispensable(index):
                return True
            self._sweeps += 1
        return False

    def take(self, index: int) -> list[int]:
        """Keep a state; those that must go for it."""
        gone: list[int] = []
        if len(self.kept) == self._slots:
            gone = self._dispensable(index)[:1]
            self.kept.remove(gone[0])
        self.kept.append(index)
        return gone

    def _longest(self, older: int) -> int:
        """The longest gap that may follow that many older kept states."""
        return reach(self._slots - older, self._sweeps - 1)

    def _dispensable(self, index: int) -> list[int]:
        """The kept states that could go, if `index` is kept: the shortest gap first."""
        after = [*self.kept[2:], index]
        gaps = zip(self.kept, self.kept[1:], after, strict=False)
        lengths = {
            middle: stop - start
            for older, (start, middle, stop) in enumerate(gaps)
            if stop - start <= self._longest(older)
        }
        return sorted(lengths, key=lengths.__getitem__)
