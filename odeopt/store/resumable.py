"""States in files that outlive the process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import StorageError
from odeopt.store.base import Shelf
from odeopt.store.state_file import read_state, write_state

PROGRESS = ".progress"
"""How the names of progress files end."""


class ResumableShelf(Shelf):
    """States in a folder, none removed that the last progress file needs.

    The state of an index is always the same, so that it may be written again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._devices: dict[int, torch.device] = {}
        self._needed: set[int] = set()

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
        if index not in self._needed:
            self._file(index).unlink(missing_ok=True)

    @override
    def adopt(self, index: int, device: torch.device) -> None:
        if not self._file(index).is_file():
            raise StorageError(
                f"{self._file(index)}, which the interrupted solve needs, is not there any more:"
                f" remove {self._folder} and make the solve again."
            )
        self._devices[index] = device
        self._needed.add(index)

    @override
    def settle(self) -> None:
        for index in self._needed - self._devices.keys():
            self._file(index).unlink(missing_ok=True)
        self._needed = set(self._devices)

    @override
    def close(self, done: bool) -> None:
        self._devices.clear()
        if not done:
            return
        for pattern in (f"*{PROGRESS}", f".*{PROGRESS}.*.tmp", "state-*", ".state-*.tmp"):
            for path in self._folder.glob(pattern):  # progress first: it needs the states
                path.unlink(missing_ok=True)
        with suppress(OSError):  # other files are in it
            self._folder.rmdir()

    def _file(self, index: int) -> Path:
        return self._folder / f"state-{index:09d}"
