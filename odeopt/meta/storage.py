"""Checkpoints of a meta-learner."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeopt import tree
from odeopt.errors import InputError
from odeopt.files import write_bytes
from odeopt.types import PyTree


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint so that the file is either the old or the new one."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read_checkpoint(path: Path | None) -> dict[str, Any] | None:
    """What a checkpoint holds, on the CPU; None if there is none."""
    if path is None or not path.exists():
        return None
    return torch.load(path, map_location="cpu", weights_only=True)


def copy_into(own: PyTree, stored: list[Any], what: str) -> None:
    """Copy stored leaves into the tensors of a tree.

    Raises:
        InputError: if their shapes differ.
    """
    mine = tree.leaves(own)
    shapes = [getattr(leaf, "shape", None) for leaf in mine]
    if shapes != [getattr(leaf, "shape", None) for leaf in stored]:
        raise InputError(f"the {what} have other shapes than those of this learner: {shapes}.")
    for leaf, found in zip(mine, stored, strict=True):
        if isinstance(leaf, Tensor):
            leaf.copy_(found)
