"""States as dense blocks of memory, and back with the strides that they had.

The order of the dimensions in memory decides in which order some kernels add numbers up, so that
a state must come back with it for gradients to be bitwise the same. A dimension of stride 0 (one
state for all tasks) is kept once.
"""

from __future__ import annotations

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
