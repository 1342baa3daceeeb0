"""States in files that outlive the process."""

from __future__ import annotations

from collections.abc import Collection
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.store.base import Shelf
from odeopt.checkpoint.store.own_files import state_file
from odeopt.checkpoint.store.solve_folder import SolveFolder
from odeopt.checkpoint.store.state_file import Label, read_state, write_state
from odeopt.errors import StorageError


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

    def settle(self, needed: Collection[int]) -> None:
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
