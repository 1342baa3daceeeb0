"""Meta-batches from a fixed set of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odeopt.engine.problem import check_lead
from odeopt.errors import InputError
from odeopt.outer.method import TaskBatch
from odeopt.tools import tree
from odeopt.tools.seeds import generator
from odeopt.tools.types import PyTree


@dataclass(frozen=True, eq=False)
class TaskPool:
    """Meta-batches of tasks drawn without replacement, anew in each epoch.

    `pool(k)` is the meta-batch of update k. It depends on k and the seed alone, so that an
    interrupted run goes on exactly where it was.

    Args:
        train: training data; every tensor has a leading dimension, one entry per task.
        validation: validation data, likewise.
        batch_size: tasks per meta-batch; the last few tasks of an epoch are left out if they do
            not fill one.
        seed: fixes the order.
        names: what the tasks are called in reports of failures; their indices by default.
    """

    train: PyTree
    validation: PyTree
    batch_size: int = 5
    seed: int = 0
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not any(leaf.ndim > 0 for leaf in tree.tensors(self.train)):
            raise InputError("train holds no tensor with a leading task dimension.")
        for batch, what in ((self.train, "train"), (self.validation, "validation")):
            check_lead(batch, len(self), what)
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(self):  # pyright: ignore
            raise InputError(
                f"batch_size is {size!r}; expected an integer from 1 to {len(self)}, the number of"
                " tasks."
            )
        if self.names and len(self.names) != len(self):
            raise InputError(f"there are {len(self.names)} names for {len(self)} tasks.")

    def settings(self) -> Mapping[str, Any]:
        """What tells two pools apart: everything but the names, which are for reports."""
        return {
            "train": self.train, "validation": self.validation, "batch_size": self.batch_size,
            "seed": self.seed,
        }  # fmt: skip

    def __len__(self) -> int:
        """The number of tasks."""
        return next(leaf.shape[0] for leaf in tree.tensors(self.train) if leaf.ndim > 0)

    def __call__(self, update: int) -> TaskBatch:
        """The meta-batch of an update."""
        return self.select(self.indices(update))

    def indices(self, update: int) -> list[int]:
        """The tasks of an update."""
        per_epoch = len(self) // self.batch_size
        epoch, position = divmod(update, per_epoch)
        order = torch.randperm(len(self), generator=generator(self.seed, epoch))
        return order[position * self.batch_size :][: self.batch_size].tolist()

    def select(self, indices: Sequence[int]) -> TaskBatch:
        """Some tasks."""

        def pick(leaf: Tensor) -> Tensor:
            return leaf[torch.tensor(list(indices), device=leaf.device)]

        names = tuple(self.names[i] if self.names else f"task {i}" for i in indices)
        return TaskBatch(
            tree.map_tensors(pick, self.train), tree.map_tensors(pick, self.validation), names
        )
