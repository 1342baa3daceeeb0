"""Attention that can be differentiated twice."""

from __future__ import annotations

import threading
from contextlib import ContextDecorator
from types import TracebackType
from typing import final

from torch.backends import cuda as backends  # they hold for the CPU as well

_SWITCHES = (
    (backends.flash_sdp_enabled, backends.enable_flash_sdp, False),
    (backends.mem_efficient_sdp_enabled, backends.enable_mem_efficient_sdp, False),
    (backends.cudnn_sdp_enabled, backends.enable_cudnn_sdp, False),
    (backends.math_sdp_enabled, backends.enable_math_sdp, True),
)
"""For each of torch's kernels: whether it is in use, how that is changed, and what is wanted."""


@final
class PlainAttention(ContextDecorator):
    """Blocks in which torch writes attention out: its fused kernels have no second derivative.

    The switches belong to the process. They are turned in the first block that opens, in whatever
    thread, and turned back when the last one has closed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._before: list[bool] = []

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._before = [enabled() for enabled, _, _ in _SWITCHES]
                for _, enable, wanted in _SWITCHES:
                    enable(wanted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        with self._lock:
            self._open -= 1
            if self._open == 0:
                for (_, enable, _), before in zip(_SWITCHES, self._before, strict=True):
                    enable(before)


PLAIN_ATTENTION = PlainAttention()
"""The one of this process."""
