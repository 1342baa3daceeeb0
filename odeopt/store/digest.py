"""Tensors as short text that is the same if, and only if, they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor

from odeopt.store.packing import pack
from odeopt.store.state_file import raw_bytes


def digest(tensors: Iterable[Tensor]) -> str:
    """A digest of shapes, dtypes and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        block, packing = pack(tensor)
        found.update(f"{block.dtype} {packing.shape} {packing.order};".encode())
        found.update(raw_bytes(block))
    return found.hexdigest()
