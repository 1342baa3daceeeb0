"""The forward sweep: from the initial state to the final one, keeping what the schedule says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

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
from odeopt.engine.refinement import Refinement
from odeopt.engine.rows import Rows
from odeopt.engine.steppers import Stepper
from odeopt.errors import OdeoptError


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


def forward_sweep(
    stepper: Stepper,
    y0: Tensor,
    schedule: CheckpointSchedule | None,
    kept: Kept,
    first: int,
    observe: Sequence[int],
    fingerprints: bool,
    journal: Journal | None,
) -> Trajectory:
    """Run the solve and the schedule's forward stream, which starts at step `first`.

    Without a schedule nothing is kept; with a journal the sweep goes on from the progress in it.
    """
    trajectory = Trajectory(y0, y0, kept, first)
    unsaved = stepper.length is None or not stepper.saves
    if unsaved or schedule is None or schedule.watches:
        journal = None
    runner = _Runner(stepper, trajectory, frozenset(observe), fingerprints, journal)
    if schedule is None:
        runner.advance_to_end()
        return trajectory
    runner.advance(first)
    if stepper.length == first:
        return trajectory
    runner.begin()
    runner.follow(schedule)
    return trajectory


def run_to_end(stepper: Stepper, y0: Tensor) -> None:
    """Make every step of an adaptive solve and keep nothing but the record of the steps."""
    y, k = y0, 0
    while stepper.length is None:
        y, k = stepper.advance(k, y), k + 1


class _Runner:
    """Carries out forward actions; the sweep has ended once the last state has been reached."""

    def __init__(
        self, stepper: Stepper, trajectory: Trajectory, observe: frozenset[int], prints: bool,
        journal: Journal | None,
    ) -> None:  # fmt: skip
        self._stepper, self._trajectory = stepper, trajectory
        self._observe, self._prints, self._journal = observe, prints, journal
        self._index, self._y = 0, trajectory.y_end
        self._begun = self._ended = False
        self._actions = 0
        trajectory.kept.begin(trajectory.y_end)
        if journal is not None and journal.forward is not None:
            self._resume(journal.forward)

    def begin(self) -> None:
        """The first step that is to be pulled comes next."""
        if not self._begun:
            self._begun = True
            self._print()

    def follow(self, schedule: CheckpointSchedule) -> None:
        """Carry out a schedule's forward stream, from the current index on."""
        first, length = self._trajectory.first, self._stepper.length
        stream = schedule.forward(None if length is None else length - first)
        action = next(stream)
        for _ in range(self._actions):  # carried out before the solve was interrupted
            action = stream.send(Progress(self._stepper.time(self._index), self._y))
        while True:
            self._run(action)
            self._actions += 1
            if length is None and self._ended:
                stream.close()
                return
            try:
                action = stream.send(Progress(self._stepper.time(self._index), self._y))
            except StopIteration:
                return

    def advance(self, stop: int) -> None:
        """Make steps until the index is `stop`."""
        while self._index < stop:
            before, self._y = self._y, self._stepper.advance(self._index, self._y)
            self._index += 1
            self._trajectory.kept.step_done()
            if self._ended:
                self._trajectory.kept.stats.replayed_steps += 1
                continue
            self._trajectory.before_end, self._trajectory.y_end = before, self._y
            self._print()
            self._ended = self._index == self._stepper.length
            self._look()
            self._save()

    def advance_to_end(self) -> None:
        """Make every step that is left."""
        while self._index != self._stepper.length:
            self.advance(self._index + 1)

    def _run(self, action: Action) -> None:
        kept, first = self._trajectory.kept, self._trajectory.first
        match action:  # the most frequent first
            case Advance(_, stop):
                self.advance(first + stop)
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

    def _look(self) -> None:
        if not self._observe or self._ended:
            return
        if self._stepper.grid_index(self._index) in self._observe:
            self._trajectory.observed[self._index] = self._y

    def _print(self) -> None:
        if self._begun and self._prints:
            self._trajectory.prints.append(fingerprint(self._y))

    def _save(self) -> None:
        if self._journal is None or self._ended or not self._journal.is_due:
            return
        self._journal.save(
            forward_progress(self._trajectory, self._index, self._actions, self._begun),
            self._trajectory.kept,
        )

    def _resume(self, progress: ForwardProgress) -> None:
        trajectory = self._trajectory
        self._index, self._y, self._begun = progress.index, progress.y, progress.begun
        self._actions = progress.actions
        trajectory.y_end, trajectory.before_end = progress.y, progress.before_end
        trajectory.observed, trajectory.prints = progress.observed, Rows.unstacked(progress.prints)


def resumed_trajectory(progress: ForwardProgress, kept: Kept, first: int) -> Trajectory:
    """What a forward sweep had left behind before the solve was interrupted."""
    prints = Rows.unstacked(progress.prints)
    return Trajectory(progress.y, progress.before_end, kept, first, progress.observed, prints)


def forward_progress(
    trajectory: Trajectory, index: int, actions: int, begun: bool, done: bool = False,
    refinement: Refinement | None = None,
) -> ForwardProgress:  # fmt: skip
    """What there is to be saved of a forward sweep."""
    y, kept = trajectory.y_end, trajectory.kept
    steps = None if refinement is None else dict(vars(refinement))
    return ForwardProgress(
        done, begun, actions, index, y, trajectory.before_end, kept.places(),
        trajectory.observed, trajectory.prints.stacked(y), steps, counts(kept.stats),
    )  # fmt: skip


def fingerprint(state: Tensor) -> Tensor:
    """A number per task that changes when the state does: of its sum and its norm.

    Both read the state once and allocate nothing of its size.
    """
    norm = torch.linalg.vector_norm(state, dim=-1)
    return torch.add(state.sum(-1), norm, alpha=math.sqrt(2))
