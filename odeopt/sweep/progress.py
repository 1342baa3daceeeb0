"""How far a solve has come, saved so that it can be resumed after a crash."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeopt.errors import InputError
from odeopt.stats import Stats
from odeopt.store.checked_file import read_checked, write_checked
from odeopt.store.resumable import PROGRESS
from odeopt.sweep.kept import Kept


@dataclass
class ForwardProgress:
    """Where a forward sweep is; the last one also holds what the backward sweep begins with.

    Attributes:
        done: whether the sweep has ended.
        begun: whether the first step that is to be pulled has been reached.
        actions: how many of the schedule's actions have been carried out.
        index: the index of the running state.
        y: the running state.
        before_end: the state before the last step.
        kept: indices of kept states.
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
    kept: list[int]
    observed: dict[int, Tensor]
    prints: Tensor
    refinement: dict[str, Any] | None
    counts: dict[str, int]


@dataclass
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
        kept: indices of kept states.
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
    kept: list[int]
    counts: dict[str, int]


class Journal:
    """The progress files of one solve.

    Args:
        folder: where they are.
        seconds: how often progress is saved.
        identity: digests of the parts of the solve, by name.
        device: where the solve runs.

    Raises:
        InputError: if the folder holds the progress of another solve.
        StorageError: if a file there is not what was written.
    """

    def __init__(
        self, folder: Path, seconds: float, identity: dict[str, str], device: torch.device
    ) -> None:
        self._folder, self._seconds, self._identity = folder, seconds, identity
        self._device = device
        self._last = time.monotonic()
        found = self._read("forward")
        self.forward = None if found is None else ForwardProgress(**found)
        found = self._read("backward")
        self.backward = None if found is None else BackwardProgress(**found)

    @property
    def is_due(self) -> bool:
        """Whether it is time to save progress."""
        return time.monotonic() - self._last >= self._seconds

    def resume(self, kept: Kept) -> None:
        """Take over the kept states and the stats of the last progress file."""
        last = self.backward or self.forward
        if last is None:
            return
        for index in last.kept:
            kept.adopt(index, last.y)
        vars(kept.stats).update(last.counts)

    def save(self, progress: ForwardProgress | BackwardProgress, kept: Kept) -> None:
        """Write a progress file; states that only the one before it needed can go."""
        name = "forward" if isinstance(progress, ForwardProgress) else "backward"
        own = {part.name: getattr(progress, part.name) for part in fields(progress)}
        buffer = io.BytesIO()
        torch.save({"identity": self._identity, "progress": _owned(own)}, buffer)
        write_checked(self._folder / f"{name}{PROGRESS}", buffer.getvalue())
        kept.settle()
        self._last = time.monotonic()

    def check_seeds(self, seeds: str) -> None:
        """Raise `InputError` if the backward sweep began with other gradients."""
        if self.backward is not None and self.backward.seeds != seeds:
            raise InputError(
                f"{self._folder} holds the progress of another solve, which differs in the outer"
                f" loss or its batch. {_WHAT_TO_DO}"
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self._folder / f"{name}{PROGRESS}"
        if not path.is_file():
            return None
        buffer = io.BytesIO(read_checked(path))
        found = torch.load(buffer, map_location=self._device, weights_only=True)
        self._check(found["identity"])
        return found["progress"]

    def _check(self, identity: Mapping[str, str]) -> None:
        names = {**identity, **self._identity}
        other = [name for name in names if identity.get(name) != self._identity.get(name)]
        if other:
            raise InputError(
                f"{self._folder} holds the progress of another solve, which differs in"
                f" {', '.join(other)}. {_WHAT_TO_DO}"
            )


_WHAT_TO_DO = (
    "Make the call that was interrupted again, or remove the folder, or give Disk(path,"
    " resume=True) another one."
)


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
