"""What changes from step to step: the batch of a stream and its random numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from odeopt.errors import InputError
from odeopt.inner.stream import Stream
from odeopt.solver.dynamics import Data
from odeopt.tools import tree
from odeopt.tools.seeds import seeded
from odeopt.tools.types import PyTree, Tensors

_ORDINARY: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True, eq=False)
class StepInputs:
    """A stream as the kernels take it.

    Attributes:
        stream: the stream.
        layout: the structure of its first batch, which every other must have.
        shared: the data that does not change.
        device: where the solve runs.
    """

    stream: Stream
    layout: tree.Partition
    shared: tree.Tensors
    device: torch.device

    def data(self, k: int) -> Data:
        """The data of step k.

        Raises:
            InputError: if its batch has another structure than the first.
        """
        batch = self.stream(k)
        leaves = self._read(batch)
        found = self._check(k, batch) if leaves is None else tuple(leaves)
        return Data(self.shared, found)

    def random(self, k: int, device: torch.device) -> AbstractContextManager[None]:
        """A block in which random numbers are those of step k."""
        seed = self.stream.step_seed(k)
        return _ORDINARY if seed is None else seeded(seed, device)

    @cached_property
    def _read(self) -> Callable[[PyTree], list[Tensor] | None]:
        if set(self.layout.roles) != {"data"}:
            return lambda batch: None
        return tree.reader(self.layout.spec)

    def _check(self, k: int, batch: PyTree) -> Tensors:
        """The tensors of batch k.

        Raises:
            InputError: if it has another structure than the first.
        """
        partition, _, data = tree.partition(batch, lambda leaf: False)
        if partition != self.layout:
            raise InputError(
                f"the stream's batch {k} has the structure {partition.spec}, or other numbers in"
                f" it, than batch 0, which has {self.layout.spec}: every batch needs the same"
                " structure."
            )
        return data
