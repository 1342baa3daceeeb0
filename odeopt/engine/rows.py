"""What a sweep notes in each of its steps, in little memory."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

PACK = 16
"""So many rows are put together at a time."""


class Rows:
    """Small tensors of one shape, one per step.

    A tensor of one number takes several hundred bytes, and many that stay between large ones which
    come and go keep an allocator from using that space again: they are put together as they come.
    """

    def __init__(self) -> None:
        self._packed: list[Tensor] = []
        self._loose: list[Tensor] = []

    @classmethod
    def unstacked(cls, rows: Tensor) -> Self:
        """The rows of a tensor of shape [n, ...]."""
        found = cls()
        if rows.shape[0]:
            found._packed.append(rows)
        return found

    def append(self, row: Tensor) -> None:
        """Note another one."""
        self._loose.append(row)
        if len(self._loose) == PACK:
            self._pack()

    def stacked(self, like: Tensor) -> Tensor:
        """Shape [n, ...]; if there are none, [0, ...] with the rest and the dtype of `like`."""
        loose = [torch.stack(self._loose)] if self._loose else []
        parts = self._packed + loose
        return torch.cat(parts) if parts else like.new_zeros((0, *like.shape))

    def _pack(self) -> None:
        """Parts of one length are put together in turn, so that there are few."""
        part = torch.stack(self._loose)
        self._loose.clear()
        while self._packed and self._packed[-1].shape[0] == part.shape[0]:
            part = torch.cat([self._packed.pop(), part])
        self._packed.append(part)

    def __bool__(self) -> bool:
        return bool(self._packed or self._loose)
