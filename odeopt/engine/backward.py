"""The backward sweep: from the gradient at the final state to the gradient at the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

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
from odeopt.engine.forward import Rows, Trajectory, fingerprint
from odeopt.engine.journal import BackwardProgress, Journal, counts
from odeopt.engine.kernels import Kernels, PullKernel, PullResult, Scalars
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import SettledStepper, Waits
from odeopt.solver.base import Solver
from odeopt.solver.dynamics import Data, Theta, add_thetas
from odeopt.tools.packing import digest


class StepKernels:
    """The pull of each step, with the method that the step was made with."""

    def __init__(self, kernels: Kernels, stepper: SettledStepper, adjoint: LocalAdjoint) -> None:
        def method_at(k: int) -> int | None:
            """None for adjoints with a method of their own."""
            return stepper.method_at(k) if adjoint.replays else None

        @cache
        def kernel_of(method: int | None) -> tuple[PullKernel, Cost]:
            own = kernels.at(method)
            return own.pull(adjoint), own.cost(adjoint)

        self.solver: Callable[[int], Solver] = lambda k: kernels.at(method_at(k)).solver
        """What step k was made with."""
        self._at: Callable[[int], tuple[PullKernel, Cost]] = lambda k: kernel_of(method_at(k))

    def cost(self, k: int) -> Cost:
        """Of the pull over an interval that begins with step k."""
        return self._at(k)[1]

    def pull(self, k: int, interval: Interval, lam: Tensor) -> PullResult:
        """Take lam back over an interval that begins with step k."""
        return self._at(k)[0](k, interval, lam)


class SpectralMonitor:
    r"""Estimates $h\rho$ over the stability limit at each pull, by power iteration.

    The vector is carried along. The estimate is a lower bound for symmetric Jacobians; for others
    it is the growth of a vector under the Jacobian, the size of its largest eigenvalue in the long
    run.
    """

    def __init__(self, at: StepKernels, kernels: Kernels, adjoint: LocalAdjoint, n: int) -> None:
        self.ratios: list[Tensor] = []
        self._at, self._adjoint, self._iterations = at, adjoint, n
        self._vector: Tensor | None = None

        def kernel(t: Tensor, y: Tensor, v: Tensor, theta: Theta, data: Data) -> Tensor:
            stepping = kernels.stepping(adjoint.differentiation, theta, data)
            return stepping.linearize(t, y).pullback(v).y

        batched, theta, data = kernels.batched(kernel), kernels.theta, kernels.data
        self._image: Callable[..., Tensor] = lambda t, y, v: batched(t, y, v, theta, data)

    def pull(self, k: int, interval: Interval, lam: Tensor) -> PullResult:
        """The pull, with an estimate before it."""
        limit = self._adjoint.stability_limit(self._at.solver(k))
        assert limit is not None, "the methods of a solver are alike"
        vector = _start_vector(interval.y0) if self._vector is None else self._vector
        radius = torch.zeros_like(interval.dt)
        for _ in range(self._iterations):
            image = self._image(interval.t, interval.y0, vector)
            radius = torch.linalg.vector_norm(image, dim=-1)
            tiny = torch.finfo(radius.dtype).tiny
            vector = image / (radius + tiny)[..., None]
        self._vector = vector
        self.ratios.append(interval.dt * radius / limit)
        return self._at.pull(k, interval, lam)


def _start_vector(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape[-1], generator=generator, dtype=like.dtype).to(like.device)
    return (vector / torch.linalg.vector_norm(vector)).expand_as(like)


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
        row = like[..., None].expand(*like.shape, len(Scalars._fields))
        return Scalars.of(self.scalars.stacked(row))


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
        self, stepper: SettledStepper, trajectory: Trajectory, adjoint: LocalAdjoint,
        pull: PullKernel, cotangents: dict[int, Tensor], stats: Stats, journal: Journal | None,
    ) -> None:  # fmt: skip
        self.trace = Trace(exact=adjoint.exact, end=fingerprint(trajectory.y_end))
        self._stepper, self._pull = stepper, pull
        self._trajectory, self._stats = trajectory, stats
        self._cotangents = cotangents
        self._y, self._y1 = trajectory.before_end, trajectory.y_end
        self._waits = [stepper.waits]
        if adjoint.first_step(stepper.length) > 0:  # a task that makes more steps leaves out more
            self._waits.append(Waits(stepper.left_out(adjoint), length_counts=False))
        self._stops: list[int] = []
        self._theta: Theta | None = None
        self._journal, self._actions = journal, 0
        self._index: int | None = None

    def run(self, actions: Iterator[Action], lam: Tensor) -> Swept:
        """The whole sweep, from lam at the final state."""
        seeds = [lam, *self._cotangents.values()]
        start = torch.linalg.vector_norm(torch.stack(seeds), dim=-1).amax(0)
        self._lam = lam
        kept = self._trajectory.kept
        kept.begin(self._trajectory.y_end)
        self._trajectory.y_end = self._trajectory.before_end = lam.new_empty(0)  # release them
        if self._journal is not None:
            self._resume(self._journal, digest(seeds))
        before = self._actions
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
        growth = norms / start.clamp(min=torch.finfo(start.dtype).tiny)
        g_t, g_dt = self._gather(scalars, start)
        return Swept(self._lam, g_t, g_dt, self._theta, growth, torch.zeros_like(start))

    def _run(self, action: Action) -> None:
        kept = self._trajectory.kept
        match action:  # the most frequent first
            case Pull(start, stop):
                self._pull_back(self._trajectory.first + start, self._trajectory.first + stop)
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
        """Take lam over the steps start..stop-1."""
        y, lam = self._y, self._lam
        if stop in self._cotangents:  # the outer loss observes this state
            lam = lam + self._cotangents[stop]
        if self._trajectory.prints:
            self.trace.prints.append(fingerprint(y))
        t, dt = self._stepper.interval(start, stop)
        pulled = self._pull(start, Interval(t, dt, y, self._y1), lam)  # no name keeps y1 alive
        for waits in self._waits:
            waiting = waits.between(start, stop)
            if waiting is not None:
                pulled = waiting.pull(lam, pulled)
        self._lam, self._y1 = pulled.lam, y
        if self._theta is None:
            self._theta = pulled.theta
        elif any(pulled.theta):
            self._theta = add_thetas([self._theta, pulled.theta])
        self._stops.append(stop)
        self.trace.starts.append(start)
        self.trace.scalars.append(pulled.scalars)
        self._trajectory.kept.step_done()

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
        none = like.new_zeros((*like.shape, self._stepper.length))
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
