"""Many outer losses at once: their cotangents are pulled together, as many as fit into memory.

A cotangent of many losses, and all that is pulled from it, has a first dimension of losses, before
that of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.checkpoint.graphs import memory_budget
from odeopt.tools import tree

MOST_ON_CPU = 2**25
"""Bytes that cotangents take at once on a CPU: more would come from fresh memory in every step,
which is slow. 100 losses of a perceptron of 135,000 parameters took 0.6 to 0.9 times as long
with it."""

Pull = Callable[[Tensor], Any]
"""From a cotangent to tensors."""


def over_losses(pull: Pull) -> Pull:
    """The pull of many cotangents at once, along the first dimension."""
    return torch.func.vmap(pull, randomness="same")


def is_many(cotangent: Tensor, state: Tensor) -> bool:
    """Whether there are cotangents of many losses: they have a dimension more than the state."""
    return cotangent.ndim > state.ndim


def one_or_many(pull: Pull, cotangent: Tensor, state: Tensor) -> Any:
    """The pull of one cotangent, or of many."""
    return over_losses(pull)(cotangent) if is_many(cotangent, state) else pull(cotangent)


def in_chunks(pull: Pull, cotangents: Tensor, size: int | None) -> Any:
    """The pull of many cotangents, so many at a time; all at once where size is None.

    Args:
        pull: takes many cotangents and returns a tree of tensors with the same first dimension.
        cotangents: shape [losses, ...].
        size: how many it is given at a time.
    """
    if size is None or size >= len(cotangents):
        return pull(cotangents)
    parts = [pull(part) for part in cotangents.split(size)]
    return tree.pytree.tree_map(lambda *leaves: torch.cat(leaves), *parts)


def fitting(nbytes: int | None, device: torch.device) -> int | None:
    """How many cotangents are pulled at once, within the memory budget.

    Args:
        nbytes: what each of them takes: about as much as the graph through which it is pulled.
        device: where.

    Returns:
        At least 1; None, which stands for all, where the size is not known.
    """
    if nbytes is None:
        return None
    room = memory_budget(device)
    if device.type == "cpu":
        room = min(room, MOST_ON_CPU)
    return max(room // max(nbytes, 1), 1)
