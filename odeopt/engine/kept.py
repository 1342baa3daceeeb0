"""The states that are kept between the sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor

from odeopt.checkpoint.store import Device, Shelf, Tier
from odeopt.engine.stats import Stats
from odeopt.tools.resident import ResidentGuard


class Kept:
    """Kept states by index, in their tiers; records in `stats` the most there were at one time.

    Shelves that are `opened` already go by the number of their tier. As a context manager it
    forgets every state in the end.
    """

    def __init__(
        self, stats: Stats, tiers: Sequence[Tier] = (Device(),),
        opened: Mapping[int, Shelf] | None = None,
    ) -> None:  # fmt: skip
        self.stats = stats
        self._tiers = tiers
        self._shelves = dict(opened or {})
        self._places: dict[int, tuple[int, int]] = {}
        """The tier of each state, and its size in bytes."""
        self._bytes = Counter[str]()
        self._all_bytes = 0
        self._resident = ResidentGuard()

    def store(self, index: int, state: Tensor, tier: int = 0) -> None:
        """Keep a state."""
        self.free(index)
        if tier not in self._shelves:
            self._shelves[tier] = self._tiers[tier].open()
        self._shelves[tier].put(index, state)
        self.adopt(index, state, tier)

    def adopt(self, index: int, like: Tensor, tier: int) -> None:
        """Count a state, of a known shape, that is in a tier already."""
        kind, stats, size = self._tiers[tier].kind, self.stats, like.nbytes
        self._places[index] = tier, size
        self._bytes[kind] += size
        self._all_bytes += size
        stats.stored_states = max(stats.stored_states, len(self._places))
        stats.stored_bytes = max(stats.stored_bytes, self._all_bytes)
        if kind in ("device", "host", "disk"):  # that of a plugin is among all bytes only
            most = max(getattr(stats, f"{kind}_bytes"), self._bytes[kind])
            setattr(stats, f"{kind}_bytes", most)

    def free(self, index: int) -> None:
        """Drop a state, if it is there."""
        if index in self._places:
            tier, size = self._places.pop(index)
            self._shelves[tier].drop(index)
            self._bytes[self._tiers[tier].kind] -= size
            self._all_bytes -= size

    @property
    def at_hand(self) -> bool:
        """Whether every state is where it is needed, so that there is nothing to prefetch."""
        return all(tier.at_hand for tier in self._tiers)

    def prefetch(self, index: int) -> None:
        """Begin to bring back a state, if it is there, for it comes next."""
        if index in self._places:
            tier, _ = self._places[index]
            self._shelves[tier].prefetch(index)

    def __getitem__(self, index: int) -> Tensor:
        tier, _ = self._places[index]
        return self._shelves[tier].get(index)

    def begin(self, state: Tensor) -> None:
        """A sweep begins with a state."""
        self._resident.begin(state)

    def step_done(self) -> None:
        """A step has been made, forward or backward: memory that was freed may be given back."""
        self._resident.step_done(self._all_bytes)

    def indices(self) -> list[int]:
        """The indices of kept states, sorted."""
        return sorted(self._places)

    def places(self) -> list[tuple[int, int]]:
        """The index and the tier of each kept state, sorted."""
        return [(index, tier) for index, (tier, _) in sorted(self._places.items())]

    def close(self, done: bool) -> None:
        """Forget every state; `done` says that the solve has come to its end."""
        for shelf in self._shelves.values():
            shelf.close(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(done=error is None)
