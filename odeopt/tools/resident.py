"""Memory of the process: what is freed in a solve is given back before it adds up.

The C library of Linux serves blocks of up to 32 MiB from one heap, where a hole that a large state
has left often fits the next one no more. Many such holes add up to several times what is alive.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from torch import Tensor

LEAST = 2**20
"""Bytes of a state below which holes are too small to matter."""

SURPLUS = 2.0
"""How often what is kept and what a step takes may be resident before holes are given back. With
less it happens so often that fetching the memory again takes a good part of the time."""

_STATM = Path("/proc/self/statm")


def release_memory() -> bool:
    """Give memory that was freed back to the system, wherever in the heap it lies.

    After solves with large states up to twice their budget and what one step takes stay with the
    process, for the next solve. This returns it, in some milliseconds; no setting is changed.

    Returns:
        Whether the C library can do it (glibc of Linux); else nothing happens.
    """
    trim = _trim()
    if trim is not None:
        trim()
    return trim is not None


class ResidentGuard:
    """Watches the resident memory during one solve on the CPU, and lets go what is free."""

    def __init__(self) -> None:
        self._start: int | None = None
        self._last = self._step = self._kept = 0

    def begin(self, state: Tensor) -> None:
        """A sweep begins with a state; with small ones nothing is looked at."""
        if state.nbytes >= LEAST and state.device.type == "cpu" and self._start is None:
            self._start = self._last = _resident()

    def step_done(self, kept: int) -> None:
        """Look at the memory after a step, forward or backward.

        Args:
            kept: bytes of kept states.
        """
        if self._start is None:
            return
        now = _resident()
        self._step = max(self._step, now - self._last)
        self._kept = max(self._kept, kept)
        if now - self._start > SURPLUS * (self._kept + self._step):
            release_memory()
            now = _resident()
        self._last = now


def _resident() -> int:
    """Bytes of this process in memory; 0 where that cannot be read."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@cache
def _trim() -> Callable[[], object] | None:
    """The function of glibc that gives back what is free; None elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return lambda: trim(0)
