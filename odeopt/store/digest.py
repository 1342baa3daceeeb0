"""Tensors as short text that is the same if, and only if, they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from odeopt.store.packing import pack
from odeopt.store.state_file import raw_bytes


def digest(tensors: Iterable[Tensor]) -> str:
    """A digest of shapes, dtypes, values and the order of the values in memory."""
    found = hashlib.sha256()
    for tensor in tensors:
        block, packing = pack(tensor)
        found.update(f"{block.dtype} {packing.shape} {packing.order};".encode())
        found.update(raw_bytes(block))
    return found.hexdigest()


def digest_values(tensors: Iterable[Tensor]) -> str:
    """A digest of shapes, dtypes and values, however they lie in memory."""
    contiguous = torch.contiguous_format
    return digest(tensor.detach().clone(memory_format=contiguous) for tensor in tensors)
