"""What a checkpoint schedule is: a stream of actions, carried out by the sweeps.

Actions are not to be changed. They are not frozen, since that makes each take 2.5 times as long to
make, and a step needs five.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.plan import Plan
from odeopt.checkpoint.store import Device, Tier, check_tier
from odeopt.tools.keywords import KnownKeywords


@dataclass(slots=True, unsafe_hash=True)
class Advance:
    """Move the running state from index `start` to index `stop`, one step at a time."""

    start: int
    stop: int


@dataclass(slots=True, unsafe_hash=True)
class Store:
    """Keep the running state, which is at `index`, in one of the schedule's tiers."""

    index: int
    tier: int = 0


@dataclass(slots=True, unsafe_hash=True)
class Restore:
    """Make the kept state `index` the running state."""

    index: int


@dataclass(slots=True, unsafe_hash=True)
class Free:
    """Drop the kept state `index`."""

    index: int


@dataclass(slots=True, unsafe_hash=True)
class Pull:
    """Take the adjoint variable from index `stop` to `start`; the running state is at `start`."""

    start: int
    stop: int


Action = Advance | Store | Restore | Free | Pull


class Progress(NamedTuple):
    """What a forward stream is told after each action."""

    t: Tensor
    """The current time, shape [] or [tasks]."""
    y: Tensor
    """The running state, shape [d] or [tasks, d]."""


ForwardStream = Generator[Action, Progress, None]


class CheckpointSchedule(KnownKeywords, ABC):
    """Which states are kept in the forward sweep, and how the others come back.

    A slot holds one state. The initial state takes one of the slots; the final and the running
    state take none.
    """

    is_mesh: bool
    """Whether an interpolating adjoint takes the kept states as its mesh (else: every state)."""

    needs_length: bool
    """Whether the number of steps must be known before the forward sweep."""

    keeps_all: bool = False
    """Whether every state is kept, so that nothing is ever replayed."""

    keeps_graphs: bool = False
    """Whether `graphs` says of how many steps the graphs are kept, where the engine can do so."""

    watches: bool = False
    """Whether the forward stream depends on the states it is told of."""

    tiers: tuple[Tier, ...] = (Device(),)
    """Where kept states are; `Store` says in which of them."""

    @override
    def _given(self) -> Mapping[str, Any]:
        tier = self.tiers[0]
        return {"store": None if tier.kind == "device" else tier}

    def on(self, device: torch.device) -> CheckpointSchedule:
        """The schedule to use for states on a device."""
        del device
        return self

    def fit(self, state_bytes: int, steps: int | None) -> CheckpointSchedule:
        """The schedule to use for states of a size, and for a number of steps if it is known."""
        del state_bytes, steps
        return self

    def graphs(self, graph_bytes: int, state_bytes: int, steps: int) -> int:
        """Of how many steps the graphs may be kept at one time, beside the states.

        Args:
            graph_bytes: the size of one.
            state_bytes: the size of a state.
            steps: the number of steps that are pulled.
        """
        del graph_bytes, state_bytes, steps
        return 0

    def coarser(self) -> CheckpointSchedule:
        """The schedule for half as many steps, with half as many nodes."""
        return self

    def plan(self, steps: int) -> Plan | None:
        """What was chosen for that many steps and what it costs, if there was a choice."""
        del steps
        return None

    @abstractmethod
    def forward(self, n: int | None) -> ForwardStream:
        """Actions of the forward sweep over n steps, from 0 to n: any but Pull.

        The final state is taken when index n is reached for the first time; the stream may go on
        from a restored state. When n is None it advances by one step at a time and is closed at
        the end.
        """

    @abstractmethod
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        """Actions that pull every step n-1, ..., 0 once, replaying what was not kept.

        The running state is at n - 1 when the stream begins. `kept` is sorted.
        """


def in_store(store: Tier | None) -> tuple[Tier, ...]:
    """The tiers of a schedule that keeps all its states in one place, the device by default."""
    return CheckpointSchedule.tiers if store is None else (check_tier(store),)


def run_through(n: int | None) -> Iterator[int]:
    """0, 1, ..., n - 1; without end when n is None."""
    index = 0
    while n is None or index < n:
        yield index
        index += 1


def pull_mesh(nodes: Sequence[int], n: int) -> Iterator[Action]:
    """Pull over the intervals between kept states, without replay."""
    stop = n
    for start in reversed(nodes):
        yield Restore(start)
        yield Pull(start, stop)
        yield Free(start)
        stop = start


def replay_segments(nodes: Sequence[int], n: int) -> Iterator[Action]:
    """Replay each segment between kept states once, keeping its states until they are pulled."""
    stop = n
    for start in reversed(nodes):
        yield Restore(start)
        for index in range(start + 1, stop):
            yield Advance(index - 1, index)
            if index < stop - 1:
                yield Store(index)
        yield Pull(stop - 1, stop)
        for index in range(stop - 2, start - 1, -1):
            yield Restore(index)
            yield Pull(index, index + 1)
            yield Free(index)
        if stop - 1 == start:
            yield Free(start)
        stop = start
