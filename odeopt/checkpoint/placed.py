"""A schedule whose slots are in different tiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import final

from typing_extensions import override

from odeopt.checkpoint.base import Action, CheckpointSchedule, ForwardStream, Free, Store
from odeopt.checkpoint.simulation import simulate, simulate_forward
from odeopt.plan import Plan
from odeopt.store import Tier


@final
class Placed(CheckpointSchedule):
    """Another schedule, each of whose slots belongs to a tier.

    Slots are numbered, and a state goes to the free slot with the lowest number. For Revolve,
    which frees the newest state first, that is the number of states kept before it.

    Args:
        base: a schedule whose actions do not depend on states.
        name: what to call it.
        tiers: the tiers.
        places: the tier of each slot, as an index into the tiers.
        state_bytes: the size of one state.
        keeps_all: whether nothing will be replayed.
    """

    is_mesh = False

    def __init__(
        self, base: CheckpointSchedule, name: str, tiers: tuple[Tier, ...], places: Sequence[int],
        state_bytes: int, keeps_all: bool = False,
    ) -> None:  # fmt: skip
        self._base, self._name = base, name
        self._places, self._state_bytes = places, state_bytes
        self.tiers = tiers
        self.needs_length = base.needs_length
        self.keeps_all = keeps_all

    @override
    def forward(self, n: int | None) -> ForwardStream:
        slots = _Slots(self._places)
        stream = self._base.forward(n)
        action = next(stream)
        while True:
            progress = yield slots.place(action)
            try:
                action = stream.send(progress)
            except StopIteration:
                return

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        if n == 0:
            return
        numbered = Placed(self._base, "", (), range(len(self._places)), 0)
        slots = _Slots(self._places, simulate_forward(numbered, n).held)
        for action in self._base.backward(n, kept):
            yield slots.place(action)

    @override
    def plan(self, steps: int) -> Plan:
        usage = simulate(self, steps)
        kinds = [tier.kind for tier in self.tiers]
        size = self._state_bytes
        used = {kind: usage.peaks[tier] * size for tier, kind in enumerate(kinds)}
        return Plan(
            self._name,
            steps,
            size,
            {kind: self._places.count(tier) for tier, kind in enumerate(kinds)},
            usage.stored_states,
            usage.stored_states * size,
            used.get("device", 0),
            used.get("host", 0),
            used.get("disk", 0),
            usage.replayed_steps,
        )


class _Slots:
    """Which slots are taken, and by which states."""

    def __init__(self, places: Sequence[int], taken: Mapping[int, int] | None = None) -> None:
        self._places = places
        self._taken = dict(taken or {})
        self._free = sorted(set(range(len(places))) - set(self._taken.values()))  # a heap

    def place(self, action: Action) -> Action:
        """The action, with the tier of its slot."""
        match action:
            case Store(index):
                slot = heappop(self._free)
                self._taken[index] = slot
                return Store(index, self._places[slot])
            case Free(index):
                heappush(self._free, self._taken.pop(index))
                return action
            case _:
                return action
