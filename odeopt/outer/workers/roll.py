"""Which worker has come how far, so that an error can name the one that is lost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, final

PATIENCE = 5.0
"""Seconds that worker 0, in whose process the roll may be, waits for the others to read it."""


@final
class Roll:
    """Every worker signs it before each exchange, and says in it why it leaves.

    Args:
        store: what all workers write to (a `torch.distributed.Store`); None to keep no roll.
        rank: the number of this worker.
        count: how many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._exchanges = 0
        if store is not None:
            store.set_timeout(timedelta(seconds=10))  # the store itself may be on a lost machine

    def sign(self) -> None:
        """This worker has come to its next exchange."""
        self._exchanges += 1
        if self._store is not None:
            self._store.set(str(self._rank), str(self._exchanges))

    def missing(self) -> Mapping[int, str]:
        """The workers that are furthest behind this one, and why they left if they said so."""
        if self._store is None:
            return {}
        try:
            signed = {rank: int(self._read(str(rank)) or 0) for rank in range(self._count)}
            last = min(signed.values())
            behind = [n for n, k in signed.items() if k == last < self._exchanges]
            return {rank: self._read(_note(rank)) for rank in behind}
        except RuntimeError:
            return {}

    def leave(self, why: str) -> None:
        """Say why this worker takes part in nothing any more; the first word counts."""
        if self._store is None:
            return
        try:
            if not self._read(_note(self._rank)):
                self._store.set(_note(self._rank), why)
        except RuntimeError:
            pass  # the store is lost, too

    def wait(self) -> None:
        """Until the others have left as well, but for those that are lost; some seconds at most."""
        end = time.monotonic() + PATIENCE
        while (
            self._store is not None
            and self._rank == 0
            and time.monotonic() < end
            and self._staying()
        ):
            time.sleep(0.05)

    def _staying(self) -> set[int]:
        try:
            others = {rank for rank in range(1, self._count) if not self._read(_note(rank))}
        except RuntimeError:
            return set()
        return others - set(self.missing())

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def _note(rank: int) -> str:
    return f"why {rank} left"
