"""How long calls take."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    _wait(device)
    begin = perf_counter()
    run()
    _wait(device)
    return perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
