"""The tier of states in files."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError, StorageError
from odeopt.store.base import JournalSettings, Kind, Shelf, Tier
from odeopt.store.resumable import ResumableShelf
from odeopt.store.state_file import read_state, write_state


@final
@dataclass(frozen=True)
class Disk(Tier):
    """Kept states go to files below a folder, one per state, and are removed after use.

    Each solve makes a folder of its own in it, so that solves can share the path. Every file is
    written whole or not at all and carries a checksum. Writing holds about two more copies of one
    state in the memory of the host.

    With `resume=True` the states are in the folder itself, which then belongs to one call of
    `value_and_grad` at a time, with a file that says how far it has come. A call that is killed,
    or whose loss raises, leaves them there; the same call made again goes on from there and gives
    bitwise the same result, its stats included. A call with other arguments raises. The files are
    removed when the call has its gradient. Progress costs the running states, and a few numbers
    for each step, every `seconds`; states that it needs are dropped only when the next one has
    been written, which takes up to twice the slots on disk. Sweeps of a solver that
    chooses its steps on the way, and of `Graded`, can be resumed once the forward one has ended.

    Cost: d numbers on disk for each state, of each task, written and read once.

    What a loss computes cannot be compared, so that its first step is: a loss that gives other
    numbers there is refused, one that differs only later is not.

    Args:
        path: a folder; it is made if it is not there.
        resume: whether an interrupted solve is gone on with.
        seconds: how often progress is saved; 0 after each step.

    Raises:
        InputError: if the path is no path; in the solve, if the folder holds the progress of
            another one.
        StorageError: in the solve, if the folder cannot be written to, or a file has vanished
            or is not what was written.
    """

    kind: ClassVar[Kind] = "disk"
    path: str | os.PathLike[str]
    resume: bool = False
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not str(self.path):  # pyright: ignore
            raise InputError(f"path is {self.path!r}; expected the path of a folder.")
        if not isinstance(self.seconds, int | float) or not self.seconds >= 0:  # pyright: ignore
            raise InputError(f"seconds is {self.seconds!r}; expected a number of at least 0.")

    @property
    @override
    def journal(self) -> JournalSettings | None:
        return JournalSettings(Path(self.path), self.seconds) if self.resume else None

    @override
    def open(self) -> Shelf:
        if self.resume:
            return ResumableShelf(Path(self.path))
        return DiskShelf(make_folder(Path(self.path)))


class DiskShelf(Shelf):
    """States in the files of one folder, which goes when the shelf does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._devices: dict[int, torch.device] = {}
        self._remove = weakref.finalize(self, _remove_folder, folder, os.getpid())

    @override
    def put(self, index: int, state: Tensor) -> None:
        write_state(self._file(index), state)
        self._devices[index] = state.device

    @override
    def get(self, index: int) -> Tensor:
        return read_state(self._file(index), self._devices[index])

    @override
    def drop(self, index: int) -> None:
        del self._devices[index]
        self._file(index).unlink(missing_ok=True)

    @override
    def close(self, done: bool) -> None:
        self._devices.clear()
        self._remove()

    def _file(self, index: int) -> Path:
        return self._folder / f"state-{index:09d}"


def make_folder(path: Path) -> Path:
    """A new folder below a path.

    Raises:
        StorageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="odeopt-", dir=path))
    except OSError as error:
        raise StorageError(
            f"Disk({str(path)!r}) cannot be written to: {error}. Give it a folder that can."
        ) from error


def _remove_folder(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
