"""Many outer losses at once: their cotangents are pulled together, as many as fit into memory.

A cotangent of many losses, and all that is pulled from it, has a first dimension of losses, before
that of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odeopt.checkpoint.graphs import memory_budget
from odeopt.tools import tree
from odeopt.tools.memory import measured

MOST_ON_CPU = 2**25
"""Bytes that cotangents take at once on a CPU: more would come from fresh memory in every step,
which is slow. 100 losses of a perceptron of 135,000 parameters took 0.6 to 0.9 times as long
with it."""

Pull = Callable[[Tensor], Any]
"""From a cotangent to tensors."""


def over_losses(pull: Pull) -> Pull:
    """The pull of many cotangents at once, along the first dimension."""
    return torch.func.vmap(pull, randomness="same")


def one_or_many(pull: Pull, cotangent: Tensor, state: Tensor) -> Any:
    """The pull of one cotangent, or of many, which have a dimension more than the state."""
    return pull(cotangent) if cotangent.ndim == state.ndim else over_losses(pull)(cotangent)


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


def fitting(make: Callable[[], Any], shared: Sequence[Tensor], copies: int = 1) -> int | None:
    """How many cotangents can be pulled at once through a graph, within the memory budget.

    Each takes about as much as the graph itself.

    Args:
        make: makes the graph.
        shared: tensors that are alive anyway; the first tells the device.
        copies: how many such graphs there are, one for each task.

    Returns:
        At least 1; None where the size of the graph cannot be measured.
    """
    _, nbytes = measured(make, shared)
    return None if nbytes is None else fitting_bytes(copies * nbytes, shared[0].device)


def fitting_bytes(nbytes: int, device: torch.device) -> int:
    """The same for a graph of a known size."""
    room = memory_budget(device)
    if device.type == "cpu":
        room = min(room, MOST_ON_CPU)
    return max(room // max(nbytes, 1), 1)
