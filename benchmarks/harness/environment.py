"""The circumstances of a run, for the head of its report."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def describe(device: torch.device) -> dict[str, str | int]:
    """Versions, threads and the device's name.

    Args:
        device: Where the benchmark computes.

    Returns:
        Plain data with the keys torch, python, platform, threads, device and device_name.
    """
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": _device_name(device),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _linux_processor() or platform.processor() or platform.machine()


def _linux_processor() -> str:
    """The processor's name as Linux states it, or nothing where it does not."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
