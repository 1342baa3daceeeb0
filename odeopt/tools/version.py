"""The version, and what it is that computes."""

from __future__ import annotations

import platform

import torch

__version__ = "0.1.0"
"""The release, which the package's metadata repeat."""


def versions() -> str:
    """What a number may depend on: the versions of odeopt, torch and Python."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"odeopt {__version__}, torch {torch.__version__}, Python {python}"
