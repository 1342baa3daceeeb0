"""Folders that last as long as a solve; those of a process that was killed go with the next."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from odeopt.checkpoint.store.own_files import LOCK, remove_own
from odeopt.errors import StorageError
from odeopt.tools.locks import FolderLock

_PREFIX = "odeopt-"
_NAME = re.compile(_PREFIX + "[a-z0-9_]{8}")


def make_folder(path: Path) -> tuple[Path, FolderLock]:
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


def remove_folder(folder: Path, lock: FolderLock) -> None:
    """Remove a folder that is locked, and what a solve has made in it; nothing else."""
    with suppress(OSError):
        remove_own(folder)
        lock.release()
        folder.rmdir()
    lock.release()


def _remove_abandoned(path: Path) -> None:
    """Remove folders whose owners have died."""
    with os.scandir(path) as entries:
        found = [
            Path(entry.path)
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    for folder in found:
        with suppress(OSError):  # it may be somebody else's, or just be going
            _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    if not (folder / LOCK).is_file():
        folder.rmdir()  # if it is empty: who makes it new makes another one then
        return
    lock = FolderLock.take(folder / LOCK)
    if lock is not None and lock.excludes:
        remove_folder(folder, lock)
