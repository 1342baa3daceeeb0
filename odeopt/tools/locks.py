"""Locks on folders, which end with the process that holds them."""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, final

try:
    import fcntl as _fcntl
except ImportError:  # not a Unix
    _locking: Any = None
else:
    _locking = _fcntl

_HELD = (errno.EAGAIN, errno.EACCES)
_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP)


@final
class FolderLock:
    """An exclusive lock on a folder, through a file in it that goes when the lock does.

    Nobody else gets it, in this process or another, until it is released or the process has died.
    Where the system, or the file system, has no such locks it excludes nobody.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._release = weakref.finalize(self, _release, path, descriptor)
        _held.add(self)

    @classmethod
    def take(cls, path: Path) -> FolderLock | None:
        """The lock, held through the file at a path; None if somebody else has it.

        Raises:
            OSError: if the file cannot be made, or the system fails to lock it.
        """
        if _locking is None:
            return cls(path, None)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _locking.flock(descriptor, _locking.LOCK_EX | _locking.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in _HELD:
                    return None
                if error.errno not in _UNKNOWN:
                    raise
                path.unlink(missing_ok=True)
                return cls(path, None)
            if _is_at(descriptor, path):
                return cls(path, descriptor)
            os.close(descriptor)  # who held it has removed the file meanwhile

    @classmethod
    def take_in(cls, folder: Path, name: str) -> FolderLock | None:
        """The lock on a folder, which is made if it is not there; as `take`."""
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # who has used the folder has just removed it
                return cls.take(folder / name)

    @property
    def is_held(self) -> bool:
        """Whether it has been neither released nor forgotten."""
        return self._release.alive

    @property
    def excludes(self) -> bool:
        """Whether it keeps others out."""
        return self.is_held and self._descriptor is not None

    def release(self) -> None:
        """Let others have it; does nothing the second time."""
        self._release()

    def forget(self) -> None:
        """Leave it to the process that this one was forked from."""
        if self._release.detach() is not None and self._descriptor is not None:
            os.close(self._descriptor)


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _release(path: Path, descriptor: int | None) -> None:
    if descriptor is None:
        return
    try:
        with suppress(OSError):  # such as a file system that cannot be written to any more
            if _is_at(descriptor, path):
                path.unlink()
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that is at a path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
