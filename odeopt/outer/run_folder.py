"""The folder of a run: its checkpoint, its metrics, and who may write them."""

from __future__ import annotations

from pathlib import Path
from typing import final

from odeopt.checkpoint.store.checked_file import read_header
from odeopt.errors import InputError, StorageError
from odeopt.outer.metrics import MetricsFile
from odeopt.outer.storage import Checkpoint
from odeopt.tools.locks import FolderLock

CHECKPOINT, METRICS, LOCK = "checkpoint.pt", "metrics.jsonl", "run.lock"


@final
class RunFolder:
    """The folder of a run, as one learner sees it.

    Attributes:
        checkpoint: the path of the checkpoint.
        metrics: the file of metrics.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.checkpoint = path / CHECKPOINT
        self.metrics = MetricsFile(path / METRICS)
        self._lock: FolderLock | None = None
        self._owned = False
        self._known: bytes | None = None
        """The header of the checkpoint that this learner has written or restored last."""

    def lock(self) -> bool:
        """Keep other learners out; false if this one has done so already.

        Raises:
            StorageError: if another learner runs here, or the folder cannot be written to.
        """
        if self._lock is not None and self._lock.is_held:  # not by the process it was forked from
            return False
        try:
            self._lock = FolderLock.take_in(self._path, LOCK)
        except OSError as error:
            raise StorageError(
                f"the learner's folder {self._path} cannot be written to: {error}. Give it one that"
                " can."
            ) from error
        if self._lock is None:
            raise StorageError(
                f"{self._path} is in use by another learner, of this process or of another. Wait"
                " until its fit has ended, or give each learner a folder of its own."
            )
        return True

    def unlock(self) -> None:
        """Let other learners in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def claim(self, updates: int) -> None:
        """Make it the folder of this learner, which has made so many updates.

        Raises:
            InputError: if it holds another run, or another learner has gone on with this one.
        """
        now = read_header(self.checkpoint)
        if now is not None and not self._owned:
            raise InputError(
                f"{self._path} holds the checkpoint of another run: call restore() to go on with"
                " it, or give another folder."
            )
        self._check(now)
        self.metrics.truncate(updates)
        self._owned = True

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, in place of this learner's last one.

        Raises:
            InputError: if it is another learner's.
        """
        self._check(read_header(self.checkpoint))
        self._known = checkpoint.write(self.checkpoint)

    def take_over(self, header: bytes) -> None:
        """Go on from the checkpoint that has this header."""
        self._owned, self._known = True, header

    def _check(self, now: bytes | None) -> None:
        if now is not None and now != self._known:
            raise InputError(
                f"{self.checkpoint} was written by another learner since this one wrote or restored"
                " it: call restore() to go on from there, or give another folder."
            )
