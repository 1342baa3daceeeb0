"""Batches and few-shot tasks, and what is done to any tree of tensors such as these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from odeopt.tools.tree import map_tensors

Tree = TypeVar("Tree")


class Batch(NamedTuple):
    """Inputs x, shape [n, ...], and targets y, shape [n, outputs] or class labels [n]."""

    x: Tensor
    y: Tensor


class Task(NamedTuple):
    """A training batch and a different validation batch, or those of several tasks stacked."""

    train: Batch
    validation: Batch


def move(tree: Tree, device: torch.device, dtype: torch.dtype) -> Tree:
    """The tensors on a device; those of an integer type, as labels are, keep it."""

    def moved(leaf: Tensor) -> Tensor:
        return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

    return map_tensors(moved, tree)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of equal shapes along a new leading dimension."""
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def join(trees: Sequence[Tree]) -> Tree:
    """Trees one after the other."""
    return pytree.tree_map(lambda *leaves: torch.cat(leaves), *trees)


def take(tree: Tree, chosen: Any) -> Tree:
    """Some entries of each tensor, by an index, indices, a slice or a mask."""
    return pytree.tree_map(lambda leaf: leaf[chosen], tree)


def each(tasks: Task) -> list[Task]:
    """Stacked tasks one by one."""
    return [take(tasks, index) for index in range(len(tasks.train.x))]
