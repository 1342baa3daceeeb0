"""Which worker has come how far, so that an error can name the one that is lost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, final


@final
class Roll:
    """Every worker signs it before each exchange.

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

    def missing(self) -> list[int]:
        """The workers that have not come as far as this one, as far as can be told."""
        if self._store is None:
            return []
        try:
            return [rank for rank in range(self._count) if self._read(rank) < self._exchanges]
        except RuntimeError:
            return []

    def _read(self, rank: int) -> int:
        key = str(rank)
        return int(self._store.get(key)) if self._store.check([key]) else 0
