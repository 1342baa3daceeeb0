"""What a schedule would keep and replay, from its actions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    Free,
    Progress,
    Pull,
    Restore,
    Store,
)

_NOTHING = Progress(torch.zeros(()), torch.zeros(0))


@dataclass
class Usage:
    """What both sweeps do with kept states.

    Attributes:
        stored_states: the most states kept at one time.
        peaks: the most states kept at one time in each tier.
        traffic: how often a state is stored in or restored from each tier.
        replayed_steps: steps made again.
        held: the tier of each state that is kept now, by index.
    """

    stored_states: int = 0
    peaks: Counter[int] = field(default_factory=Counter[int])
    traffic: Counter[int] = field(default_factory=Counter[int])
    replayed_steps: int = 0
    held: dict[int, int] = field(default_factory=dict[int, int])
    _now: Counter[int] = field(default_factory=Counter[int])

    def run(self, action: Action) -> None:
        """Take note of an action."""
        match action:
            case Store(index, tier):
                self.held[index] = tier
                self._now[tier] += 1
                self.traffic[tier] += 1
                self.peaks[tier] = max(self.peaks[tier], self._now[tier])
                self.stored_states = max(self.stored_states, len(self.held))
            case Restore(index):
                self.traffic[self.held[index]] += 1
            case Free(index):
                self._now[self.held.pop(index)] -= 1
            case Advance() | Pull():
                pass


def forward_actions(schedule: CheckpointSchedule, n: int) -> Iterator[Action]:
    """The actions of the forward sweep; for schedules that do not look at states."""
    stream = schedule.forward(n)
    action = next(stream)
    while True:
        yield action
        try:
            action = stream.send(_NOTHING)
        except StopIteration:
            return


def simulate(schedule: CheckpointSchedule, n: int) -> Usage:
    """The usage of both sweeps; for schedules that do not look at states."""
    usage = Usage()
    if n == 0:
        return usage
    for action in forward_actions(schedule, n):
        usage.run(action)
    for action in schedule.backward(n, sorted(usage.held)):
        usage.run(action)
        if isinstance(action, Advance):
            usage.replayed_steps += action.stop - action.start
    return usage
