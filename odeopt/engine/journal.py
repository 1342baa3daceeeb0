"""Which solve it is and how far it has come, saved so that it can be resumed after a crash."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor

from odeopt.checkpoint.store import JournalSettings
from odeopt.checkpoint.store.solve_files import BACKWARD, FORWARD
from odeopt.checkpoint.store.solve_folder import WHAT_TO_DO, ResumableShelf, SolveFolder
from odeopt.engine.choices import Choices
from odeopt.engine.kept import Kept
from odeopt.engine.kernels import Kernels
from odeopt.engine.problem import Problem
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper
from odeopt.errors import InputError, StorageError
from odeopt.inner.rule import UpdateRule
from odeopt.tools import tree
from odeopt.tools.describing import describe
from odeopt.tools.packing import digest
from odeopt.tools.version import versions


def identify(choices: Choices, problem: Problem, kernels: Kernels) -> dict[str, str]:
    """The parts of a solve by name; it costs one evaluation of the velocity.

    Raises:
        CompatibilityError: if a choice holds an object about which nothing can be said.
    """
    theta, data, grid, stream = problem.theta, problem.data, problem.grid, problem.stream
    own = (None, None) if stream is None else (stream.seed, stream.length)
    chosen = {
        "the field": choices.field,
        "the solver": choices.solver,
        "the adjoint": choices.adjoint,
        "the checkpoints": choices.checkpoints,
        "the compilation": choices.compiler,
    }
    times = tree.tensors((grid.times, grid.dt, grid.stops))
    return {
        "the version or device": f"{versions()}, {problem.y0.device}",
        **{name: describe(choice, name) for name, choice in chosen.items()},
        "the initial state": digest([problem.y0]),
        "the hparams": digest([*theta.shared, *data.shared]),
        "the batch": digest([*theta.batch, *data.batch]) + describe(own),
        "the grid": digest(times) + describe(grid.observe),
        "what the loss computes": digest([_first_step(choices, problem, kernels)]),
    }


def _first_step(choices: Choices, problem: Problem, kernels: Kernels) -> Tensor:
    """Numbers in which another loss, or another number captured by it, would be seen."""
    y0, grid = problem.y0, problem.grid
    if isinstance(choices.field, UpdateRule) or problem.stream is not None:
        return FixedStepper(kernels, grid, y0.dtype, Stats()).advance(0, y0)
    return kernels.velocity()(grid.times[..., 0].to(y0.dtype), y0)


@dataclass(eq=False)
class ForwardProgress:
    """Where a forward sweep is; the last one also holds what the backward sweep begins with.

    Attributes:
        done: whether the sweep has ended.
        begun: whether the first step that is to be pulled has been reached.
        actions: how many of the schedule's actions have been carried out.
        index: the index of the running state.
        y: the running state.
        before_end: the state before the last step.
        kept: the index and the tier of each kept state.
        observed: observed states by step index.
        prints: fingerprints of the states so far.
        refinement: the attributes of the `Refinement` of an adaptive solve.
        counts: the stats so far.
    """

    done: bool
    begun: bool
    actions: int
    index: int
    y: Tensor
    before_end: Tensor
    kept: list[tuple[int, int]]
    observed: dict[int, Tensor]
    prints: Tensor
    refinement: dict[str, Any] | None
    counts: dict[str, int]


@dataclass(eq=False)
class BackwardProgress:
    """Where a backward sweep is.

    Attributes:
        seeds: a digest of the gradients that it began with.
        actions: how many of the schedule's actions have been carried out.
        index: where the action after these is, if it is an advance that has begun.
        y: the running state.
        y1: the state at the end of the next interval.
        lam: the adjoint variable.
        theta: gradients of theta so far.
        intervals: starts and stops of those that were pulled.
        trace: what was noticed: the scalars of the pulls, fingerprints.
        kept: the index and the tier of each kept state.
        counts: the stats so far.
    """

    seeds: str
    actions: int
    index: int | None
    y: Tensor
    y1: Tensor
    lam: Tensor
    theta: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None
    intervals: tuple[list[int], list[int]]
    trace: tuple[Tensor, Tensor]
    kept: list[tuple[int, int]]
    counts: dict[str, int]


@final
class Journal:
    """The progress files of one solve, in a folder that is locked until `shelf` is closed.

    Args:
        tier: the number of the tier whose states are in the same folder.
        settings: where that is, and how often progress is saved.
        identity: the parts of the solve as text, by name.
        device: where the solve runs.

    Attributes:
        tier: see above.
        shelf: the states in the folder.
        forward: how far the forward sweep has come; None if it begins.
        backward: the same of the backward sweep.

    Raises:
        InputError: if the folder holds the progress of another solve.
        StorageError: if the folder is in use, or a file there is not what was written.
    """

    def __init__(
        self, tier: int, settings: JournalSettings, identity: Mapping[str, str],
        device: torch.device,
    ) -> None:  # fmt: skip
        self._folder, self._seconds = SolveFolder(settings.folder, identity), settings.seconds
        self.tier, self.shelf = tier, ResumableShelf(self._folder)
        self._last = time.monotonic()
        try:
            self._load(device)
        except BaseException:
            self.close()
            raise

    @property
    def is_due(self) -> bool:
        """Whether it is time to save progress."""
        return time.monotonic() - self._last >= self._seconds

    def recover(self, kept: Kept) -> None:
        """Take over the kept states and the stats of the last progress file."""
        last = self.backward or self.forward
        self.shelf.recover([] if last is None else [index for index, _ in last.kept])
        if last is None:
            return
        for index, tier in last.kept:
            if tier == self.tier:
                self.shelf.adopt(index, last.y.device)
                kept.adopt(index, last.y, tier)
            else:
                kept.store(index, self.shelf.read(index, last.y.device), tier)
        vars(kept.stats).update(last.counts)

    def save(self, progress: ForwardProgress | BackwardProgress, kept: Kept) -> None:
        """Write a progress file, after the states that it needs; those it does not need can go."""
        for index, _ in progress.kept:
            if not self.shelf.has(index):
                self.shelf.copy(index, kept[index])
        own = _owned({part.name: getattr(progress, part.name) for part in fields(progress)})
        if isinstance(progress, ForwardProgress):
            self._after = self._folder.save(FORWARD, {"progress": own})
        else:
            self._folder.save(BACKWARD, {"progress": own, "after": self._after})
        self.shelf.keep_only([index for index, _ in progress.kept])
        self._last = time.monotonic()

    def check_seeds(self, seeds: str) -> None:
        """Raise `InputError` if the backward sweep began with other gradients."""
        if self.backward is not None and self.backward.seeds != seeds:
            raise InputError(
                f"{self._folder.path} holds the progress of another solve, which differs in the"
                f" outer loss or its batch. {WHAT_TO_DO}"
            )

    def close(self) -> None:
        """Let others use the folder; the files stay."""
        self.shelf.close(done=False)

    def _load(self, device: torch.device) -> None:
        self.forward = self.backward = None
        self._after = b""
        forward, backward = (self._folder.load(name, device) for name in (FORWARD, BACKWARD))
        if forward is not None:
            self._after, content = forward
            self.forward = ForwardProgress(**content["progress"])
        if backward is not None:
            _, content = backward
            if content["after"] != self._after:
                raise StorageError(
                    f"{self._folder.path / BACKWARD} goes with another {FORWARD} than the one that"
                    " is there, or that is not there: remove the folder, and make the solve again."
                )
            self.backward = BackwardProgress(**content["progress"])


def counts(stats: Stats) -> dict[str, int]:
    """The numbers of the stats that belong to the solve, not to the process."""
    return {
        name: value
        for name, value in vars(stats).items()
        if isinstance(value, int) and not name.startswith("compile")
    }


def _owned(value: Any) -> Any:
    """The same, without the rest of the memory that tensors are views of."""
    if isinstance(value, Tensor):
        whole = value.untyped_storage().nbytes() <= value.numel() * value.element_size()
        return value if whole else value.clone()
    if isinstance(value, dict):
        return {key: _owned(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_owned(part) for part in value)
    return value
