"""The tier of states in files.

Each solve has a folder of its own; those of a process that was killed go with the next solve.
"""

from __future__ import annotations

import os
import re
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.store.base import JournalSettings, Shelf, Tier
from odeopt.checkpoint.store.solve_files import (
    LOCK,
    Label,
    read_state,
    remove_own,
    state_file,
    write_state,
)
from odeopt.checkpoint.store.solve_folder import ResumableShelf, SolveFolder
from odeopt.errors import InputError, StorageError
from odeopt.tools.locks import FolderLock
from odeopt.tools.shown import shown

_PREFIX = "odeopt-"
_NAME = re.compile(_PREFIX + "[a-z0-9_]{8}")


@final
@dataclass(frozen=True)
class Disk(Tier):
    """Kept states go to files below a folder, one per state, and are removed after use.

    Each solve makes a folder of its own in it, so that solves can share the path; the folder of a
    process that was killed goes when the next solve makes one. Every file is written whole or not
    at all, and says which state of which solve it holds, with a checksum. Writing holds about two
    more copies of one state in the memory of the host.

    With `resume=True` the states are in the folder itself, with files that say which solve it is
    and how far it has come. It is locked as long as a call of `value_and_grad` uses it. A call
    that is killed, or whose loss raises, leaves its files there; the same call made again goes on
    from there and gives bitwise the same result, its stats included. A call with other arguments
    raises. The files are removed when the call has its gradient; files of others are left alone.
    Progress costs the running states, and a few numbers for each step, every `seconds`; states
    that it needs are dropped only when the next one has been written, which takes up to twice the
    slots on disk. Beside other tiers (`MemoryBudget`) their states are written to the folder, too,
    each once. Sweeps of a solver that chooses its steps on the way, and of `Graded`, can be
    resumed once the forward one has ended.

    Cost: d numbers on disk for each state, of each task, written and read once.

    Calls are the same if their tensors, versions and choices are. Objects are compared by their
    attributes, or by what their method `settings()` returns; functions by their code, not by what
    they have captured. What a loss computes cannot be compared, so that its first step is: a loss
    that gives other numbers there is refused, one that differs only later is not.

    Args:
        path: a folder; it is made if it is not there. A relative one is looked up now.
        resume: whether an interrupted solve is gone on with.
        seconds: how often progress is saved; 0 after each step.

    Raises:
        InputError: if the path is no path; in the solve, if the folder holds the progress of
            another one.
        CompatibilityError: in the solve, if an object cannot be compared and resume is asked for.
        StorageError: in the solve, if the folder is in use or cannot be written to, or a file has
            vanished or is not what was written.
    """

    kind: ClassVar[str] = "disk"
    path: str | os.PathLike[str]
    resume: bool = False
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not str(self.path):  # pyright: ignore
            raise InputError(f"path is {shown(self.path)}; expected the path of a folder.")
        if not isinstance(self.seconds, int | float) or not self.seconds >= 0:  # pyright: ignore
            raise InputError(f"seconds is {shown(self.seconds)}; expected a number of at least 0.")
        object.__setattr__(self, "path", Path(self.path).absolute())

    @property
    @override
    def journal(self) -> JournalSettings | None:
        return JournalSettings(Path(self.path), self.seconds) if self.resume else None

    @override
    def open(self) -> Shelf:
        if self.resume:  # by hand: a solve says which one it is
            return ResumableShelf(SolveFolder(Path(self.path), {}))
        return DiskShelf(*_make_folder(Path(self.path)))


class DiskShelf(Shelf):
    """States in the files of one folder, which goes when the shelf does."""

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        self._folder = folder
        self._devices: dict[int, torch.device] = {}
        self._remove = weakref.finalize(self, _remove, folder, lock, os.getpid())

    @override
    def put(self, index: int, state: Tensor) -> None:
        write_state(state_file(self._folder, index), state, self._label(index))
        self._devices[index] = state.device

    @override
    def get(self, index: int) -> Tensor:
        return read_state(state_file(self._folder, index), self._devices[index], self._label(index))

    @override
    def drop(self, index: int) -> None:
        del self._devices[index]
        state_file(self._folder, index).unlink(missing_ok=True)

    @override
    def close(self, done: bool) -> None:
        self._devices.clear()
        self._remove()

    def _label(self, index: int) -> Label:
        return Label(self._folder.name, index)


def _remove(folder: Path, lock: FolderLock, process: int) -> None:
    if os.getpid() == process:  # not a fork of it
        _remove_folder(folder, lock)


def _make_folder(path: Path) -> tuple[Path, FolderLock]:
    """A new folder below a path, which is locked.

    Raises:
        StorageError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=path))
            with suppress(FileNotFoundError):  # taken for an abandoned one before it was locked
                lock = FolderLock.take(folder / LOCK)
                if lock is not None:
                    return folder, lock
    except OSError as error:
        raise StorageError(
            f"Disk({str(path)!r}) cannot be written to: {error}. Give it a folder that can."
        ) from error


def _remove_folder(folder: Path, lock: FolderLock) -> None:
    """Remove a folder that is locked, and what a solve has made in it; nothing else."""
    with suppress(OSError):
        remove_own(folder)
        lock.release()
        folder.rmdir()
    lock.release()


def _remove_abandoned(path: Path) -> None:
    """Remove folders whose owners have died."""
    with os.scandir(path) as entries:
        folders = [
            Path(entry.path)
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for folder in folders:
        with suppress(OSError):  # it may be somebody else's, or just be going
            _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    if not (folder / LOCK).is_file():
        folder.rmdir()  # if it is empty: who makes it new makes another one then
        return
    lock = FolderLock.take(folder / LOCK)
    if lock is not None and lock.excludes:
        _remove_folder(folder, lock)
