"""A schedule chosen by the memory it may take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, final

from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    CheckpointSchedule,
    ForwardStream,
    Free,
    Store,
)
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.online import Online
from odeopt.checkpoint.plan import Plan, format_bytes, parse_bytes
from odeopt.checkpoint.simulation import forward_actions, simulate
from odeopt.checkpoint.store import Device, Disk, Host, Tier
from odeopt.errors import InputError, OdeoptError
from odeopt.registry import CHECKPOINTS
from odeopt.tools.shown import shown


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
        slots = _Slots(self._places)
        for action in forward_actions(self._base, n):
            slots.place(action)
        for action in self._base.backward(n, kept):
            yield slots.place(action)

    @override
    def plan(self, steps: int) -> Plan:
        usage, size = simulate(self, steps), self._state_bytes
        kinds = [tier.kind for tier in self.tiers]
        slots = {kind: self._places.count(tier) for tier, kind in enumerate(kinds)}
        used = {kind: usage.peaks[tier] * size for tier, kind in enumerate(kinds)}
        device, host, disk = (used.get(kind, 0) for kind in ("device", "host", "disk"))
        stored = usage.stored_states
        return Plan(
            self._name, steps, size, slots, stored, stored * size, device, host, disk,
            usage.replayed_steps,
        )  # fmt: skip


class _Slots:
    """Which slots are in use, and by which states."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places
        self._by_state: dict[int, int] = {}
        self._free = list(range(len(places)))  # a heap

    def place(self, action: Action) -> Action:
        """The action, with the tier of its slot."""
        match action:
            case Store(index):
                slot = heappop(self._free)
                self._by_state[index] = slot
                return Store(index, self._places[slot])
            case Free(index):
                heappush(self._free, self._by_state.pop(index))
                return action
            case _:
                return action


Bytes = int | str
"""A number of bytes, or text with a unit such as "512MiB"."""


@final
@CHECKPOINTS.register("memory-budget", example=lambda: MemoryBudget("64B"))
class MemoryBudget(CheckpointSchedule):
    r"""As many kept states as fit, and the fewest replayed steps with them.

    If all states fit, all are kept. Else Revolve (see `Binomial`) gets as many slots as fit; when
    the number of steps is not known beforehand (`Adaptive`), `Online` gets them. The slots that
    are read and written most are in the fastest tier; with `Online` a state goes to the fastest
    tier that has room. What was chosen is in `stats.plan` of the result, and `describe` says it
    beforehand.

    Cost: the replays and bytes that its `Plan` says, which the stats then confirm.

    The budget is for kept states, of all tasks together. Beside them a solve holds about three
    working states (the running one, its successor, the adjoint variable), two more with a host
    part on CUDA, and what one evaluation of a gradient takes.

    Args:
        device: bytes on the device, e.g. "512MiB"; an integer counts bytes.
        host: bytes in the memory of the host.
        disk: a folder and the bytes that may be below it, e.g. `("/scratch", "100GiB")`; with
            `Disk("/scratch/run", resume=True)` in place of the folder an interrupted solve can be
            resumed. The states of the other parts are then copied there, beside these bytes.

    Raises:
        InputError: for sizes that are none; in the solve, if not even one state fits.

    References:
        Stumm and Walther 2009, "MultiStage approaches for optimal offline checkpointing", SIAM
        J. Sci. Comput. 31(3): the slots that are used most belong to the fastest memory.
    """

    is_mesh = False
    needs_length = False

    def __init__(
        self, device: Bytes, host: Bytes | None = None,
        disk: tuple[str | os.PathLike[str] | Disk, Bytes] | None = None,
    ) -> None:  # fmt: skip
        parts: list[tuple[Tier, int]] = [(Device(), parse_bytes(device, "device"))]
        if host is not None:
            parts.append((Host(), parse_bytes(host, "host")))
        if disk is not None:
            parts.append(_disk_part(disk))
        self.tiers = tuple(tier for tier, _ in parts)
        self._budgets = [budget for _, budget in parts]

    @override
    def _given(self) -> Mapping[str, Any]:
        parts = zip(self.tiers, self._budgets, strict=True)
        return {
            tier.kind: (tier, format_bytes(size)) if tier.kind == "disk" else format_bytes(size)
            for tier, size in parts
        }

    def describe(self, state_bytes: int, steps: int, known: bool = True) -> Plan:
        """What would be chosen for a solve, and what it would cost.

        Args:
            state_bytes: the size of one state, of all tasks together.
            steps: the number of steps.
            known: whether the solve knows that number beforehand; false for `Adaptive`.
        """
        plan = self.fit(state_bytes, steps if known else None).plan(steps)
        assert plan is not None, "a fitted schedule has one"
        return plan

    @override
    def fit(self, state_bytes: int, steps: int | None) -> CheckpointSchedule:
        counts = [budget // max(state_bytes, 1) for budget in self._budgets]
        if sum(counts) == 0:
            parts = zip(self.tiers, self._budgets, strict=True)
            budget = ", ".join(f"{format_bytes(size)} on {tier.kind}" for tier, size in parts)
            raise InputError(
                f"one state takes {format_bytes(state_bytes)} (all tasks together), but the budget"
                f" is {budget}: raise it, add host= or disk=, or solve fewer tasks at a time."
            )
        if steps is None:
            slots, places = sum(counts), _in_order(counts)
            return Placed(Online(slots), f"Online({slots})", self.tiers, places, state_bytes)
        enough = max(steps - 1, 1)  # the last state is the running one
        slots = min(sum(counts), enough)
        base, keeps_all = Binomial(slots), slots == enough
        name = "every state" if keeps_all else f"Binomial({slots})"
        places = _by_traffic(base, slots, steps, counts)
        return Placed(base, name, self.tiers, places, state_bytes, keeps_all)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        raise OdeoptError(_NOT_FITTED)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        raise OdeoptError(_NOT_FITTED)


_NOT_FITTED = (
    "a MemoryBudget has actions only for states of a known size: call fit(state_bytes, steps)"
    " first and use the schedule that it returns."
)


def _disk_part(disk: object) -> tuple[Tier, int]:
    if not isinstance(disk, tuple) or len(disk) != 2:
        raise InputError(f"disk is {shown(disk)}; expected a pair such as ('/scratch', '100GiB').")
    place, budget = disk
    tier = place if isinstance(place, Disk) else Disk(place)
    return tier, parse_bytes(budget, "the size in disk")


def _in_order(counts: Sequence[int]) -> list[int]:
    """The tier of each slot: as many slots as fit, the fastest tier first."""
    return [tier for tier, count in enumerate(counts) for _ in range(count)]


def _by_traffic(base: Binomial, slots: int, steps: int, counts: Sequence[int]) -> list[int]:
    """The tier of each slot: the busiest slots, and among them the newest, in the fastest."""
    in_order = _in_order(counts)[:slots]
    if len(set(in_order)) <= 1:
        return in_order
    traffic = simulate(Placed(base, "", (), range(slots), 0), steps).traffic
    places = [0] * slots
    busiest_first = sorted(range(slots), key=lambda slot: (-traffic[slot], -slot))
    for slot, tier in zip(busiest_first, in_order, strict=True):
        places[slot] = tier
    return places
