"""What a few-shot task is: a training batch and a different validation batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Inputs x, shape [n, ...], and targets y, shape [n, outputs] or class labels [n]."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch on a device; labels keep their integer type."""
        return Batch(_to(self.x, device, dtype), _to(self.y, device, dtype))


class Task(NamedTuple):
    """One task, or several of them stacked along a leading dimension."""

    train: Batch
    validation: Batch

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """The task on a device; labels keep their integer type."""
        return Task(self.train.to(device, dtype), self.validation.to(device, dtype))


def stack(tasks: Sequence[Task]) -> Task:
    """Stack tasks of equal shapes along a new leading dimension."""
    return Task(_stack([task.train for task in tasks]), _stack([task.validation for task in tasks]))


def _stack(batches: Sequence[Batch]) -> Batch:
    return Batch(
        torch.stack([batch.x for batch in batches]), torch.stack([batch.y for batch in batches])
    )


def _to(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
