"""Tensors as contiguous blocks, and digests of what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """How a dense block becomes the state again."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    """The dimensions from the outermost in memory to the innermost."""

    def unpack(self, block: Tensor) -> Tensor:
        """The state, a view of the block."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return block.permute(inverse).expand(self.shape)


def pack(state: Tensor) -> tuple[Tensor, Packing]:
    """A contiguous tensor without repetitions, and how to read it."""
    core = state.detach()
    for dim, (size, stride) in enumerate(zip(state.shape, state.stride(), strict=True)):
        if stride == 0 and size > 1:
            core = core.narrow(dim, 0, 1)
    order = tuple(sorted(range(core.ndim), key=lambda dim: -core.stride(dim)))
    block = core.permute(order).contiguous()
    if block.numel() <= 1:  # contiguous whatever its strides are
        block = block.clone(memory_format=torch.contiguous_format)
    return block, Packing(tuple(state.shape), order)


def raw_bytes(block: Tensor) -> bytes:
    """The numbers of a contiguous tensor as they are in memory."""
    return block.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors: Iterable[Tensor]) -> str:
    """A digest of shapes, dtypes, values and the order of the values in memory."""
    sha = hashlib.sha256()
    for tensor in tensors:
        block, packing = pack(tensor)
        sha.update(f"{block.dtype} {packing.shape} {packing.order};".encode())
        sha.update(raw_bytes(block))
    return sha.hexdigest()


def digest_values(tensors: Iterable[Tensor]) -> str:
    """A digest of shapes, dtypes and values, however they lie in memory."""
    contiguous = torch.contiguous_format
    return digest(tensor.detach().clone(memory_format=contiguous) for tensor in tensors)
