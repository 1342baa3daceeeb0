"""Locks on folders: one holder at a time, and none that has died."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from odeopt.tools.locks import FolderLock

fcntl = pytest.importorskip("fcntl")


def test_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    first = FolderLock.take(path)
    assert first.excludes
    assert FolderLock.take(path) is None
    first.release()
    first.release()
    assert not path.exists()
    second = FolderLock.take(path)
    assert second.excludes
    assert not first.excludes


def test_it_goes_with_its_object(tmp_path):
    FolderLock.take(tmp_path / "lock")
    assert FolderLock.take(tmp_path / "lock") is not None


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_file_that_was_removed_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    """Who opens the file of a holder that then removes it must not hold that one."""
    path, real, other = tmp_path / "lock", fcntl.flock, []

    def late(descriptor, operation):
        if not other:
            path.unlink()
            other.append(None)
            other[0] = FolderLock.take(path)
        return real(descriptor, operation)

    opened, real_open = [], os.open
    monkeypatch.setattr(os, "open", lambda *args: opened.append(real_open(*args)) or opened[-1])
    monkeypatch.setattr(fcntl, "flock", late)
    assert FolderLock.take(path) is None
    assert other[0].excludes
    assert [d for d in opened if is_open(d)] == [other[0]._descriptor]


def test_the_lock_of_another_is_not_removed(tmp_path):
    path = tmp_path / "lock"
    first = FolderLock.take(path)
    path.unlink()
    second = FolderLock.take(path)
    first.release()
    assert path.exists()
    assert second.excludes


def test_a_file_system_without_locks_excludes_nobody(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", fail)
    locks = [FolderLock.take(tmp_path / "lock") for _ in range(2)]
    assert [lock.excludes for lock in locks] == [False, False]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_made_through_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        FolderLock.take(tmp_path / "lock")
    assert not (tmp_path / "elsewhere").exists()


FORKING = """
import os, sys, time
from pathlib import Path
from odeopt.tools.locks import FolderLock
path = Path(sys.argv[1])
lock = FolderLock.take(path)
if os.fork() == 0:
    lock.release()
    sys.exit()  # with what a process does in the end
os.wait()
assert path.exists() and FolderLock.take(path) is None
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
os._exit(9)
"""


def test_a_fork_neither_releases_nor_keeps_the_lock_of_its_parent(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKING, str(path)], stdout=subprocess.PIPE
    ) as parent:
        child = int(parent.stdout.readline())
        try:
            assert parent.wait() == 9
            assert FolderLock.take(path) is not None
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_is_left_to_another_process_once(tmp_path):
    path = tmp_path / "lock"
    lock = FolderLock.take(path)
    lock.forget()
    lock.forget()
    lock.release()
    assert not lock.is_held
    assert path.exists()


def test_a_lock_that_excludes_nobody_can_be_left(tmp_path):
    lock = FolderLock(tmp_path / "lock", None)
    lock.forget()
    assert not lock.is_held
