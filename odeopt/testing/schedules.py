"""The conformance suite of checkpoint schedules: a model with integers for states."""

from __future__ import annotations

from collections.abc import Iterator

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


def check_schedule(schedule: CheckpointSchedule, steps: int = 40) -> None:
    """Check a schedule for 1..steps steps; raises AssertionError with what is wrong.

    Every step is pulled exactly once, from the last to the first, with the right state at hand;
    nothing is stored or restored that is not there; nothing is left in the end.
    """
    for n in range(1, steps + 1):
        known = schedule.fit(_STATE_BYTES, n)
        kept = _check_length(known, n, told=True)
        if schedule.needs_length:
            continue
        unknown = schedule.fit(_STATE_BYTES, None)
        alike = _check_length(unknown, n, told=False) == kept
        assert alike or unknown is not known, "what is kept depends on knowing the length"


_STATE_BYTES = 16
"""The size of a state of the model."""


def _check_length(schedule: CheckpointSchedule, n: int, told: bool) -> set[int]:
    """Check both sweeps over n steps; what is kept between them."""
    model = _Model(n)
    model.run_forward(schedule, n if told else None)
    kept = set(model.kept)
    model.run_backward(schedule.backward(n, sorted(kept)))
    return kept


class _Model:
    def __init__(self, n: int) -> None:
        self.n = n
        self.at = 0
        self.ended = False
        self.kept: set[int] = set()
        self.next_pull = n - 1

    def run_forward(self, schedule: CheckpointSchedule, n: int | None) -> None:
        stream = schedule.forward(n)
        action = next(stream)
        while True:
            assert not isinstance(action, Pull), f"{action} in the forward stream"
            self._run(action)
            self.ended = self.ended or self.at == self.n
            if self.ended and n is None:
                stream.close()
                return
            try:
                action = stream.send(self._progress())
            except StopIteration:
                assert self.ended, f"the forward stream stops at {self.at} of {self.n}"
                return

    def run_backward(self, actions: Iterator[Action]) -> None:
        self.at = self.n - 1
        for action in actions:
            self._run(action)
        assert self.next_pull == -1, f"step {self.next_pull} was never pulled"
        assert not self.kept, f"states {sorted(self.kept)} are kept in the end"

    def _progress(self) -> Progress:
        t = torch.tensor(self.at / self.n, dtype=torch.float64)
        return Progress(t, torch.stack([t, torch.exp(-5 * t)]))

    def _run(self, action: Action) -> None:
        match action:
            case Advance(start, stop):
                assert start == self.at < stop <= self.n, f"{action}, but the state is {self.at}"
                self.at = stop
            case Store(index):
                assert index == self.at, f"{action}, but the running state is {self.at}"
                self.kept.add(index)
            case Restore(index):
                assert index in self.kept, f"{action}, but kept are {sorted(self.kept)}"
                self.at = index
            case Free(index):
                assert index in self.kept, f"{action}, but kept are {sorted(self.kept)}"
                self.kept.discard(index)
            case Pull(start, stop):
                assert (start, stop) == (self.next_pull, self.next_pull + 1), (
                    f"{action}, but step {self.next_pull} is next"
                )
                assert start == self.at, f"{action}, but the running state is {self.at}"
                self.next_pull -= 1
