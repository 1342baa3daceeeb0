"""The forward sweep: from the initial state to the final one, keeping what the schedule says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

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
from odeopt.engine.journal import ForwardProgress, Journal, counts
from odeopt.engine.kept import Kept
from odeopt.engine.steppers import Refinement, Stepper
from odeopt.errors import OdeoptError

PACK = 16
"""So many rows are put together at a time."""


class Rows:
    """Small tensors of one shape, one per step.

    A tensor of one number takes several hundred bytes, and many that stay between large ones which
    come and go keep an allocator from using that space again: they are put together as they come.
    """

    def __init__(self) -> None:
        self._packed: list[Tensor] = []
        self._loose: list[Tensor] = []

    @classmethod
    def unstacked(cls, stacked: Tensor) -> Self:
        """The rows of a tensor of shape [n, ...]."""
        rows = cls()
        if stacked.shape[0]:
            rows._packed.append(stacked)
        return rows

    def append(self, row: Tensor) -> None:
        """Note another one; parts of one length are put together in turn, so that there are few."""
        self._loose.append(row)
        if len(self._loose) < PACK:
            return
        part = torch.stack(self._loose)
        self._loose.clear()
        while self._packed and self._packed[-1].shape[0] == part.shape[0]:
            part = torch.cat([self._packed.pop(), part])
        self._packed.append(part)

    def stacked(self, like: Tensor) -> Tensor:
        """Shape [n, ...]; if there are none, [0, ...] with the rest and the dtype of `like`."""
        loose = [torch.stack(self._loose)] if self._loose else []
        parts = self._packed + loose
        return torch.cat(parts) if parts else like.new_zeros((0, *like.shape))

    def __bool__(self) -> bool:
        return bool(self._packed or self._loose)


@dataclass(eq=False)
class Trajectory:
    """What a forward sweep leaves behind.

    Attributes:
        y_end: the final state.
        before_end: the state before the last step, with which the backward sweep begins.
        kept: kept states, by index relative to `first`.
        first: the first step that is to be pulled.
        observed: observed states by step index, without the first and the last.
        prints: a fingerprint of each state from `first` on; empty when nothing can be replayed.
    """

    y_end: Tensor
    before_end: Tensor
    kept: Kept
    first: int
    observed: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    prints: Rows = field(default_factory=Rows)

    @classmethod
    def resumed(cls, progress: ForwardProgress, kept: Kept, first: int) -> Self:
        """What there was when the solve was interrupted."""
        prints = Rows.unstacked(progress.prints)
        return cls(progress.y, progress.before_end, kept, first, progress.observed, prints)

    def progress(
        self, index: int, actions: int, begun: bool, done: bool = False,
        refinement: Refinement | None = None,
    ) -> ForwardProgress:  # fmt: skip
        """What there is to be saved."""
        steps = None if refinement is None else dict(vars(refinement))
        return ForwardProgress(
            done, begun, actions, index, self.y_end, self.before_end, self.kept.places(),
            self.observed, self.prints.stacked(self.y_end), steps, counts(self.kept.stats),
        )  # fmt: skip


def run_to_end(stepper: Stepper, y0: Tensor) -> None:
    """Make every step of an adaptive solve and keep nothing but the record of the steps."""
    y, k = y0, 0
    while stepper.length is None:
        y, k = stepper.advance(k, y), k + 1


class ForwardSweep:
    """Carries out forward actions; the sweep has ended once the last state has been reached.

    It begins with the trajectory, which it fills, and goes on from the progress in the journal.
    """

    def __init__(
        self, stepper: Stepper, trajectory: Trajectory, observe: tuple[int, ...],
        fingerprints: bool, journal: Journal | None,
    ) -> None:  # fmt: skip
        self._stepper, self._trajectory, self._journal = stepper, trajectory, journal
        self._observe, self._prints = frozenset(observe), fingerprints
        self._index, self._y = 0, trajectory.y_end
        self._begun = self._ended = False
        self._actions = 0
        trajectory.kept.begin(trajectory.y_end)
        saved = None if journal is None else journal.forward
        if saved is not None:
            self._index, self._begun, self._actions = saved.index, saved.begun, saved.actions

    def run(self, schedule: CheckpointSchedule | None) -> None:
        """The whole sweep, with the schedule's forward stream from the first step to be pulled.

        Without a schedule nothing is kept.
        """
        first, length = self._trajectory.first, self._stepper.length
        if schedule is None:
            while self._index != self._stepper.length:
                self._advance(self._index + 1)
            return
        self._advance(first)
        if length == first:
            return
        if not self._begun:
            self._begun = True
            self._print()
        self._follow(schedule, None if length is None else length - first)

    def _follow(self, schedule: CheckpointSchedule, steps: int | None) -> None:
        """Carry out a schedule's forward stream, from the current index on."""
        stream = schedule.forward(steps)
        action = next(stream)
        for _ in range(self._actions):  # carried out before the solve was interrupted
            action = stream.send(Progress(self._stepper.time(self._index), self._y))
        while True:
            self._run(action)
            self._actions += 1
            if steps is None and self._ended:
                stream.close()
                return
            try:
                action = stream.send(Progress(self._stepper.time(self._index), self._y))
            except StopIteration:
                return

    def _advance(self, stop: int) -> None:
        """Make steps until the index is `stop`."""
        trajectory = self._trajectory
        while self._index < stop:
            before, self._y = self._y, self._stepper.advance(self._index, self._y)
            self._index += 1
            trajectory.kept.step_done()
            if self._ended:
                trajectory.kept.stats.replayed_steps += 1
                continue
            trajectory.before_end, trajectory.y_end = before, self._y
            self._print()
            self._ended = self._index == self._stepper.length
            if not self._ended:
                self._note()

    def _run(self, action: Action) -> None:
        kept, first = self._trajectory.kept, self._trajectory.first
        match action:  # the most frequent first
            case Advance(_, stop):
                self._advance(first + stop)
            case Store(index, tier):
                kept.store(index, self._y, tier)
            case Free(index):
                kept.free(index)
            case Restore(index):
                self._index, self._y = first + index, kept[index]
            case Pull():
                raise OdeoptError(
                    f"a checkpoint schedule gave {action} in its forward stream. Run"
                    " odeopt.testing.check_schedule on it."
                )

    def _print(self) -> None:
        if self._begun and self._prints:
            self._trajectory.prints.append(fingerprint(self._y))

    def _note(self) -> None:
        """Observe a state between the first and the last, and save progress if it is time."""
        trajectory, journal = self._trajectory, self._journal
        if self._observe and self._stepper.grid_index(self._index) in self._observe:
            trajectory.observed[self._index] = self._y
        if journal is not None and journal.is_due:
            progress = trajectory.progress(self._index, self._actions, self._begun)
            journal.save(progress, trajectory.kept)


def fingerprint(state: Tensor) -> Tensor:
    """A number per task that changes when the state does: of its sum and its norm.

    Both read the state once and allocate nothing of its size.
    """
    norm = torch.linalg.vector_norm(state, dim=-1)
    return torch.add(state.sum(-1), norm, alpha=math.sqrt(2))
