"""The forward sweep: from the initial state to the final one, keeping what the schedule says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from odeopt.checkpoint.base import Advance, CheckpointSchedule, Free, Progress, Store
from odeopt.errors import OdeoptError
from odeopt.sweep.kept import Kept
from odeopt.sweep.stepper import Stepper


@dataclass
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
    prints: list[Tensor] = field(default_factory=list[Tensor])


def forward_sweep(
    stepper: Stepper,
    y0: Tensor,
    schedule: CheckpointSchedule | None,
    kept: Kept,
    first: int = 0,
    observe: Sequence[int] = (),
    fingerprints: bool = False,
) -> Trajectory:
    """Run the solve and the schedule's forward stream, which starts at step `first`.

    Without a schedule nothing is kept.
    """
    trajectory = Trajectory(y0, y0, kept, first)
    runner = _Runner(stepper, trajectory, frozenset(observe), fingerprints)
    if schedule is None:
        runner.advance_to_end()
        return trajectory
    runner.advance(first)
    if stepper.length == first:
        return trajectory
    runner.begin()
    stream = schedule.forward(None if stepper.length is None else stepper.length - first)
    action = next(stream)
    while True:
        runner.run(action)
        if stepper.length == runner.index:
            stream.close()
            return trajectory
        action = stream.send(Progress(stepper.time(runner.index), trajectory.y_end))


def run_to_end(stepper: Stepper, y0: Tensor) -> None:
    """Make every step of an adaptive solve and keep nothing but the record of the steps."""
    y, k = y0, 0
    while stepper.length is None:
        y, k = stepper.advance(k, y), k + 1


class _Runner:
    """Carries out forward actions; the running state is `trajectory.y_end`."""

    def __init__(
        self, stepper: Stepper, trajectory: Trajectory, observe: frozenset[int], prints: bool
    ) -> None:
        self.index = 0
        self._stepper = stepper
        self._trajectory = trajectory
        self._observe = observe
        self._prints = prints
        self._printing = False

    def begin(self) -> None:
        """The first step that is to be pulled comes next."""
        self._printing = self._prints
        self._print()

    def run(self, action: object) -> None:
        """Carry out one action."""
        trajectory = self._trajectory
        match action:
            case Store(index):
                trajectory.kept.store(index, trajectory.y_end)
            case Free(index):
                trajectory.kept.free(index)
            case Advance(_, stop):
                self.advance(trajectory.first + stop)
            case _:
                raise OdeoptError(
                    f"a checkpoint schedule gave {action} in its forward stream; expected Store,"
                    " Free or Advance. Run odeopt.testing.check_schedule on it."
                )

    def advance(self, stop: int) -> None:
        """Make steps until the index is `stop`."""
        trajectory = self._trajectory
        while self.index < stop:
            trajectory.before_end = trajectory.y_end
            trajectory.y_end = self._stepper.advance(self.index, trajectory.y_end)
            self.index += 1
            self._note()

    def advance_to_end(self) -> None:
        """Make every step that is left."""
        while self.index != self._stepper.length:
            self.advance(self.index + 1)

    def _note(self) -> None:
        self._print()
        if not self._observe or self.index == self._stepper.length:
            return
        if self._stepper.grid_index(self.index) in self._observe:
            self._trajectory.observed[self.index] = self._trajectory.y_end

    def _print(self) -> None:
        if self._printing:
            self._trajectory.prints.append(fingerprint(self._trajectory.y_end))


def fingerprint(state: Tensor) -> Tensor:
    """A number per task that changes when the state does."""
    return state.sum(-1)
