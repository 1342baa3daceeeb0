"""What a learner keeps on disk, and how its workers agree on it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from odeopt.errors import InputError
from odeopt.outer.metrics import Step
from odeopt.outer.named import NamedOptimizer, layout
from odeopt.outer.run_folder import RunFolder
from odeopt.outer.storage import Checkpoint
from odeopt.outer.workers import Workers
from odeopt.tools.version import versions


@final
class Keeper:
    """Saves a learner and restores it. Worker 0 alone locks the folder and writes there.

    Args:
        folder: None to keep nothing.
        workers: who takes part; each makes the same calls.
        leaves: gives what is learned, by name.
        optimizer: the outer optimiser.
        schedule: its learning-rate schedule, if there is one.
        settings: gives the parts of the run as text, by name, before it has begun.
    """

    def __init__(
        self, folder: Path | None, workers: Workers, leaves: Callable[[], Mapping[str, Any]],
        optimizer: NamedOptimizer, schedule: LRScheduler | None,
        settings: Callable[[], Mapping[str, str]],
    ) -> None:  # fmt: skip
        self._folder = None if folder is None else RunFolder(folder)
        self._writer = self._folder if workers.rank == 0 else None
        self._workers, self._leaves = workers, leaves
        self._optimizer, self._schedule = optimizer, schedule
        self._settings = {} if self._writer is None else dict(settings())

    @property
    def has_folder(self) -> bool:
        """Whether anything is kept."""
        return self._folder is not None

    def check_folder(self) -> None:
        """Raise `InputError` if there is no folder."""
        if not self.has_folder:
            raise InputError("this learner has no folder to save to: pass folder= when it is made.")

    @contextmanager
    def claimed(self, updates: int) -> Generator[None]:
        """Keep other learners out of the folder, which is this one's after so many updates.

        Raises:
            InputError: if the folder holds another run, or another learner has gone on with it.
            StorageError: if another learner runs in it, or it cannot be written to.
        """
        with self._locked():
            self._workers.together("the folder", lambda: self._claim(updates))
            yield

    def save(self, updates: int) -> None:
        """Write a checkpoint, if there is a folder."""
        self._workers.together("a checkpoint", lambda: self._write(updates))

    def restore(self) -> int | None:
        """Take the checkpoint over and say after how many updates it was made; None without one.

        Raises:
            InputError: if it is that of another run; nothing has been changed then.
            StorageError: if it is damaged, or another learner runs in the folder.
        """
        if not self._workers.from_first("a restart", self._is_there):
            return None
        with self._locked():
            header, found = self._workers.from_first("a restart", self._read)
            self._workers.together("a restart", lambda: self._prepare(found))
            self._take_over(header, found)
        return found.updates

    def note(self, step: Step) -> None:
        """Add a step to the metrics, if there is a folder."""
        if self._writer is not None:
            self._writer.metrics.append(step)

    def history(self) -> list[Step]:
        """Every step that was noted (read by each worker for itself)."""
        return [] if self._folder is None else self._folder.metrics.read()

    @contextmanager
    def _locked(self) -> Generator[None]:
        taken = self._workers.together("the folder", self._lock)
        try:
            yield
        finally:
            if taken and self._writer is not None:
                self._writer.unlock()

    def _lock(self) -> bool:
        return self._writer is not None and self._writer.lock()

    def _claim(self, updates: int) -> None:
        if self._writer is not None:
            self._writer.claim(updates)

    def _write(self, updates: int) -> None:
        if self._writer is None:
            return
        leaves = self._leaves()
        tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
        checkpoint = Checkpoint(
            versions(), self._settings, layout(leaves), updates, tensors, self._optimizer.state(),
            torch.get_rng_state(), None if self._schedule is None else self._schedule.state_dict(),
        )  # fmt: skip
        self._writer.write(checkpoint)

    def _is_there(self) -> bool:
        return self._writer is not None and self._writer.checkpoint.exists()

    def _read(self) -> tuple[bytes, Checkpoint]:
        assert self._writer is not None, "it is there"
        path = self._writer.checkpoint
        header, found = Checkpoint.read(path)
        found.check_layout(layout(self._leaves()), path)
        found.check_settings(self._settings, path)
        return header, found

    def _prepare(self, found: Checkpoint) -> None:
        """All that can fail."""
        assert self._folder is not None, "it is there"
        found.check_layout(layout(self._leaves()), self._folder.checkpoint)
        if self._writer is not None:
            self._writer.metrics.truncate(found.updates)

    def _take_over(self, header: bytes, found: Checkpoint) -> None:
        assert self._folder is not None, "it is there"
        self._optimizer.load(found.optimizer)
        if self._schedule is not None and found.schedule is not None:
            self._schedule.load_state_dict(found.schedule)
        torch.set_rng_state(found.random)
        leaves = self._leaves()
        for name, stored in found.tensors.items():
            leaves[name].copy_(stored)
        self._folder.take_over(header)
