"""The folder of a solve that can be resumed, and the states in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.store.base import Shelf
from odeopt.checkpoint.store.checked_file import of_solve
from odeopt.checkpoint.store.solve_files import (
    LOCK,
    ROOT,
    Label,
    read_state,
    remove_own,
    state_file,
    states,
    write_state,
)
from odeopt.errors import InputError, StorageError
from odeopt.tools.describing import differing
from odeopt.tools.locks import FolderLock

_IDENTITY, _PROGRESS = of_solve("solve"), of_solve("progress")

WHAT_TO_DO = (
    "Make the call that was interrupted again, or remove the folder, or give Disk(path,"
    " resume=True) another one. Where an object differs in nothing that matters, as in a counter"
    " of its calls, give its class a method settings() that returns what matters."
)


@final
class SolveFolder:
    """The folder of one solve that can be resumed, locked until it is closed.

    A root file says which solve it is. It is written first and removed first: without it the other
    files are what is left of a solve that has ended, and are removed.

    Args:
        path: the folder; it is made if it is not there.
        identity: the parts of the solve as text, by name.

    Attributes:
        path: see above.
        solve: a digest of the identity, which is in each file.

    Raises:
        InputError: if the folder holds the progress of another solve.
        StorageError: if it is in use, cannot be written to, or the root file is damaged.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path = path
        own = dict(sorted(identity.items()))
        self.solve = hashlib.sha256(json.dumps(own).encode()).hexdigest()
        self._lock = _lock(path)
        try:
            self._begin(own)
        except BaseException:
            self.close(done=False)
            raise

    def save(self, name: str, content: dict[str, Any]) -> bytes:
        """Write a progress file; its header is returned."""
        return _PROGRESS.save(self.path / name, {"solve": self.solve, **content})

    def load(self, name: str, device: torch.device) -> tuple[bytes, dict[str, Any]] | None:
        """The header and the content of a progress file; None if it has not been written.

        Raises:
            StorageError: if it is damaged, or of another solve.
        """
        path = self.path / name
        if not path.is_file():
            return None
        header, content = _PROGRESS.load(path, device)
        if content["solve"] != self.solve:
            raise StorageError(f"{path} is of another solve. {_PROGRESS.unreadable}")
        return header, content

    def remove_states(self, but: Collection[int]) -> None:
        """Remove states that no progress file needs."""
        for index, path in states(self.path).items():
            if index not in but:
                path.unlink(missing_ok=True)

    def close(self, done: bool) -> None:
        """Let others use the folder; if the solve is done, its files go before.

        Raises:
            StorageError: if they cannot be removed.
        """
        try:
            if done and self._lock.is_held:
                self._clear()
        finally:
            self._lock.release()
        with suppress(OSError):  # other files are in it, or what an interrupted solve has left
            self.path.rmdir()

    def _begin(self, identity: dict[str, str]) -> None:
        root = self.path / ROOT
        if root.is_file():
            other = differing(json.loads(_IDENTITY.read(root)[1]), identity)
            if other:
                raise InputError(
                    f"{self.path} holds the progress of another solve, which differs in"
                    f" {', '.join(other)}. {WHAT_TO_DO}"
                )
            return
        self._clear()
        _IDENTITY.write(root, json.dumps(identity).encode())

    def _clear(self) -> None:
        try:
            (self.path / ROOT).unlink(missing_ok=True)
            remove_own(self.path)
        except OSError as error:
            raise StorageError(
                f"what a solve has left in {self.path} cannot be removed: {error}. Remove the"
                " folder, or give Disk(path, resume=True) another one."
            ) from error


def _lock(path: Path) -> FolderLock:
    try:
        lock = FolderLock.take_in(path, LOCK)
    except OSError as error:
        raise StorageError(
            f"Disk({str(path)!r}) cannot be written to: {error}. Give it a folder that can."
        ) from error
    if lock is None:
        raise StorageError(
            f"{path} is in use by another solve, of this process or of another. Wait until it has"
            " ended, or give each Disk(path, resume=True) a folder of its own."
        )
    return lock


@final
class ResumableShelf(Shelf):
    """States in a folder, none removed that the last progress file needs.

    The state of an index is always the same, so that it is written once. Beside the states that
    are kept here the folder holds copies of those that are kept where they do not outlive the
    process.
    """

    def __init__(self, folder: SolveFolder) -> None:
        self._folder = folder
        self._devices: dict[int, torch.device] = {}
        """Of the states that are kept here."""
        self._written: set[int] = set()
        self._needed: set[int] = set()

    @override
    def put(self, index: int, state: Tensor) -> None:
        self.copy(index, state)
        self._devices[index] = state.device

    @override
    def get(self, index: int) -> Tensor:
        return self.read(index, self._devices[index])

    @override
    def drop(self, index: int) -> None:
        del self._devices[index]
        if index not in self._needed:
            self._remove(index)

    def copy(self, index: int, state: Tensor) -> None:
        """Write a state to the folder, if it is not there."""
        if index not in self._written:
            write_state(state_file(self._folder.path, index), state, self._label(index))
            self._written.add(index)

    def has(self, index: int) -> bool:
        """Whether the folder holds a state, kept here or not."""
        return index in self._written

    def read(self, index: int, device: torch.device) -> Tensor:
        """A state that is in the folder."""
        return read_state(state_file(self._folder.path, index), device, self._label(index))

    def adopt(self, index: int, device: torch.device) -> None:
        """Keep a state that an interrupted solve has left here."""
        self._devices[index] = device

    def recover(self, needed: Collection[int]) -> None:
        """Take over the states that the last progress file needs; others go.

        Raises:
            StorageError: if one is missing.
        """
        for index in needed:
            path = state_file(self._folder.path, index)
            if not path.is_file():
                raise StorageError(
                    f"{path}, which the interrupted solve needs, is not there any more: remove"
                    f" {self._folder.path} and make the solve again."
                )
        self._folder.remove_states(but=needed)
        self._written, self._needed = set(needed), set(needed)

    def keep_only(self, needed: Collection[int]) -> None:
        """A progress file that needs these states has been written: others go."""
        for index in self._written - set(needed):
            self._remove(index)
        self._needed = set(needed)

    @override
    def close(self, done: bool) -> None:
        self._devices.clear()
        self._folder.close(done)

    def _remove(self, index: int) -> None:
        state_file(self._folder.path, index).unlink(missing_ok=True)
        self._written.discard(index)

    def _label(self, index: int) -> Label:
        return Label(self._folder.solve, index)
