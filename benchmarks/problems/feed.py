"""Meta-batches on a device: the next ones are prepared while one is used."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

import torch

import odeopt
from benchmarks.problems.few_shot import Drawn, Episodes


class Feed:
    """`feed(k)` is meta-batch k on a device.

    On CUDA a thread draws the next meta-batch into pinned memory meanwhile, from which it is
    copied without blocking. On a CPU, whose cores are busy anyway, nothing is prepared ahead.

    Args:
        episodes: What is drawn.
        device: Where meta-batches go.
        dtype: Of the pictures.
        ahead: How many are prepared ahead; by default 2 on CUDA, else 0.

    Attributes:
        waited: Seconds spent in calls, in all.
    """

    def __init__(
        self, episodes: Episodes, device: torch.device, dtype: torch.dtype, ahead: int | None = None
    ) -> None:
        self._episodes, self._device, self._dtype = episodes, device, dtype
        self._ahead = (2 if device.type == "cuda" else 0) if ahead is None else ahead
        self._pool = ThreadPoolExecutor(1) if self._ahead else None
        self._coming: dict[int, Future[Drawn]] = {}
        self.waited = 0.0

    def __call__(self, index: int) -> odeopt.TaskBatch:
        """Meta-batch `index`; preparing it ahead changes nothing in it."""
        begin = perf_counter()
        coming = self._coming.pop(index, None)
        drawn = self._draw(index) if coming is None else coming.result()
        if self._pool is not None:
            wanted = range(index + 1, index + 1 + self._ahead)
            self._coming = {
                k: self._coming.get(k) or self._pool.submit(self._draw, k) for k in wanted
            }
        batch = self._episodes.finish(drawn, self._device, self._dtype)
        self.waited += perf_counter() - begin
        return batch

    def _draw(self, index: int) -> Drawn:
        drawn = self._episodes.draw(index)
        if self._device.type != "cuda":
            return drawn
        return Drawn(drawn.pixels.pin_memory(), drawn.names)
