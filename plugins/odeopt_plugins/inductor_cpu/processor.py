"""What the processor is, where kernels should be made differently for it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def on_amd() -> bool:
    """Whether the processor is AMD's; MKL is made for Intel's."""
    table = Path("/proc/cpuinfo")
    named = table.read_text() if table.exists() else platform.processor()
    return "AuthenticAMD" in named
