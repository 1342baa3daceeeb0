"""The backward sweep: from the gradient at the final state to the gradient at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odeopt.adjoint.base import Cost, Interval, LocalAdjoint, Swept
from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    Free,
    Pull,
    Restore,
    Store,
    pull_mesh,
)
from odeopt.engine.forward import Trajectory, fingerprint
from odeopt.engine.journal import BackwardProgress, Journal, counts
from odeopt.engine.kernels import Kernels
from odeopt.engine.pulled import Noted, Scalars
from odeopt.engine.rows import Rows
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import SettledStepper
from odeopt.engine.waiting import Waits
from odeopt.solver.base import Solver
from odeopt.solver.dynamics import Theta, add_thetas
from odeopt.tools.packing import digest


class StepKernels:
    """The pull of each step, with the method that the step was made with."""

    def __init__(self, kernels: Kernels, stepper: SettledStepper, adjoint: LocalAdjoint) -> None:
        self._kernels, self._stepper, self._adjoint = kernels, stepper, adjoint
        self._known: dict[int | None, tuple[PullKernel, Cost]] = {}

    def solver(self, k: int) -> Solver:
        """What step k was made with."""
        return self._kernels.at(self._method(k)).solver

    def cost(self, k: int) -> Cost:
        """Of the pull over an interval that begins with step k."""
        return self._at(k)[1]

    def pull(self, k: int, interval: Interval, lam: Tensor) -> Noted:
        """Take lam back over an interval that begins with step k."""
        return self._at(k)[0](k, interval, lam)

    def _at(self, k: int) -> tuple[PullKernel, Cost]:
        method = self._method(k)
        if method not in self._known:
            kernels = self._kernels.at(method)
            self._known[method] = kernels.pull(self._adjoint), kernels.cost(self._adjoint)
        return self._known[method]

    def _method(self, k: int) -> int | None:
        """None for adjoints with a method of their own."""
        return self._stepper.method_at(k) if self._adjoint.replays else None


PullKernel = Callable[[int, Interval, Tensor], Noted]


@dataclass(eq=False)
class Trace:
    """What the backward sweep noticed, one entry per pull, latest interval first."""

    exact: bool
    """Whether the adjoint is the exact one, of which growth is no sign of instability."""
    end: Tensor = field(default_factory=lambda: torch.empty(0))
    """A fingerprint of the final state."""
    starts: list[int] = field(default_factory=list[int])
    scalars: Rows = field(default_factory=Rows)
    prints: Rows = field(default_factory=Rows)
    """A fingerprint of the state at each start; empty if there is nothing to compare them with."""
    spectral: list[Tensor] = field(default_factory=list[Tensor])
    """Step length times estimated spectral radius over the stability limit, if asked for."""

    def read(self, like: Tensor) -> Scalars:
        """The scalars of all pulls, shape [pulls] or, as in `like`, [pulls, tasks]."""
        return Scalars.apart(
            self.scalars.stacked(like[..., None].expand(*like.shape, len(Scalars._fields)))
        )


def backward_actions(
    schedule: CheckpointSchedule, adjoint: LocalAdjoint, kept: list[int], steps: int
) -> Iterator[Action]:
    """The schedule's own stream, or its kept states as the mesh of an interpolating adjoint."""
    if schedule.is_mesh and not adjoint.replays:
        return pull_mesh(kept, steps)
    return schedule.backward(steps, kept)


def announced(actions: Iterator[Action], announce: Callable[[int], None]) -> Iterator[Action]:
    """The actions; once a state has been restored, the next one that will be is announced."""
    waiting: list[Action] = []
    for action in actions:
        if isinstance(action, Restore) and waiting:
            yield waiting[0]
            announce(action.index)
            yield from waiting[1:]
            waiting.clear()
        waiting.append(action)
    yield from waiting


class BackwardSweep:
    """Carries out backward actions."""

    def __init__(
        self,
        stepper: SettledStepper,
        trajectory: Trajectory,
        adjoint: LocalAdjoint,
        pull: PullKernel,
        cotangents: dict[int, Tensor],
        stats: Stats,
        journal: Journal | None = None,
    ) -> None:
        assert stepper.length is not None, "known after the forward sweep"
        self.trace = Trace(exact=adjoint.exact)
        self._stepper, self._pull = stepper, pull
        self._trajectory, self._stats = trajectory, stats
        self._cotangents = cotangents
        self._y = trajectory.before_end
        self._y1 = trajectory.y_end
        self.trace.end = fingerprint(trajectory.y_end)
        self._steps = stepper.length
        self._waits = [stepper.waits]
        if adjoint.first_step(stepper.length) > 0:  # a task that makes more steps leaves out more
            self._waits.append(Waits(stepper.left_out(adjoint), length_counts=False).between)
        self._stops: list[int] = []
        self._theta: Theta | None = None
        self._journal, self._actions, self._index = journal, 0, None

    def run(self, actions: Iterator[Action], lam: Tensor) -> Swept:
        """The whole sweep, from lam at the final state."""
        seeds = torch.stack([lam, *self._cotangents.values()])
        start = torch.linalg.vector_norm(seeds, dim=-1).amax(0)
        self._lam = lam
        self._trajectory.kept.begin(lam)
        self._trajectory.y_end = self._trajectory.before_end = lam.new_empty(0)  # release them
        if self._journal is not None:
            self._resume(self._journal, digest([lam, *self._cotangents.values()]))
        before, kept = self._actions, self._trajectory.kept
        stream = actions if kept.at_hand else announced(actions, kept.prefetch)
        for number, action in enumerate(stream):
            if number >= before:
                self._run(action)
                self._actions = number + 1
                if isinstance(action, Pull):
                    self._save(None)
        for index, cotangent in self._cotangents.items():
            if index <= self._trajectory.first:
                self._lam = self._lam + cotangent
        scalars = self.trace.read(start)
        norms = torch.cat([start[None], scalars.norm]).amax(0)
        g_t, g_dt = self._gather(scalars, start)
        return Swept(
            self._lam,
            g_t,
            g_dt,
            self._theta,
            norms / start.clamp(min=torch.finfo(start.dtype).tiny),
            torch.zeros_like(start),
        )

    def _run(self, action: Action) -> None:
        kept = self._trajectory.kept
        match action:  # the most frequent first
            case Pull(start, stop):
                self._pull_back(start, stop)
            case Restore(index):
                self._y = kept[index]
            case Free(index):
                kept.free(index)
            case Store(index, tier):
                kept.store(index, self._y, tier)
            case Advance(start, stop):
                begin, self._index = self._index or start, None
                for k in range(begin, stop):
                    self._y = self._stepper.advance(self._trajectory.first + k, self._y)
                    self._stats.replayed_steps += 1
                    kept.step_done()
                    self._save(k + 1)

    def _pull_back(self, start: int, stop: int) -> None:
        first = self._trajectory.first
        t, dt = self._stepper.interval(first + start, first + stop)
        y, lam = self._y, self._arrive(first + stop)
        if self._trajectory.prints:
            self.trace.prints.append(fingerprint(y))
        pulled = self._pull(first + start, Interval(t, dt, y, self._y1), lam)
        for waits in self._waits:
            waiting = waits(first + start, first + stop)
            if waiting is not None:
                pulled = waiting.pull(lam, pulled)
        self._lam, self._y1 = pulled.lam, y
        self._collect(pulled, first + start, first + stop)
        self._trajectory.kept.step_done()

    def _arrive(self, index: int) -> Tensor:
        """Lam at a state, with the gradient of the outer loss if it is observed."""
        cotangent = self._cotangents.get(index)
        return self._lam if cotangent is None else self._lam + cotangent

    def _collect(self, pulled: Noted, start: int, stop: int) -> None:
        if self._theta is None:
            self._theta = pulled.theta
        elif any(pulled.theta):
            self._theta = add_thetas([self._theta, pulled.theta])
        self._stops.append(stop)
        self.trace.starts.append(start)
        self.trace.scalars.append(pulled.scalars)

    def _save(self, index: int | None) -> None:
        journal = self._journal
        if journal is None or not journal.is_due:
            return
        kept, trace, lam = self._trajectory.kept, self.trace, self._lam
        progress = BackwardProgress(
            self._seeds, self._actions, index, self._y, self._y1, lam,
            None if self._theta is None else (self._theta.shared, self._theta.batch),
            (trace.starts, self._stops), (trace.scalars.stacked(lam), trace.prints.stacked(lam)),
            kept.places(), counts(self._stats),
        )  # fmt: skip
        journal.save(progress, kept)

    def _resume(self, journal: Journal, seeds: str) -> None:
        """Go on from the journal's progress, if there is any."""
        self._seeds, saved = seeds, journal.backward
        if saved is None:
            return
        journal.check_seeds(seeds)
        journal.backward = None  # its states are not to stay alive
        self._actions, self._index = saved.actions, saved.index
        vars(self._stats).update(saved.counts)  # again: correcting for an event has added to them
        self._y, self._y1, self._lam = saved.y, saved.y1, saved.lam
        self._theta = None if saved.theta is None else Theta(*saved.theta)
        trace = self.trace
        trace.starts, self._stops = map(list, saved.intervals)
        trace.scalars, trace.prints = map(Rows.unstacked, saved.trace)

    def _gather(self, scalars: Scalars, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients w.r.t. the start and the length of each step, of shape [..., steps].

        An interval of several steps has its time at the first of them and its length at each.
        """
        none = like.new_zeros((*like.shape, self._steps))
        starts = self.trace.starts
        if not starts:
            return none, none
        spans = [range(*span) for span in zip(starts, self._stops, strict=True)]
        firsts = torch.tensor(starts, device=like.device)
        lengths = torch.tensor([len(span) for span in spans], device=like.device)
        each = torch.tensor([k for span in spans for k in span], device=like.device)
        g_t, g_dt = scalars.t.movedim(0, -1), scalars.dt.movedim(0, -1)
        g_dt = g_dt.repeat_interleave(lengths, -1)
        return none.index_copy(-1, firsts, g_t), none.index_copy(-1, each, g_dt)
