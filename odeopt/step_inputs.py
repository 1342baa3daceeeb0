"""What changes from step to step: the batch of a stream and its random numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from odeopt import tree
from odeopt.errors import InputError
from odeopt.seeds import seeded
from odeopt.stream import Stream
from odeopt.theta import Data

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
        """The data of step k."""
        return Data(self.shared, fetch(self.stream, self.layout, k))

    def random(self, k: int, device: torch.device) -> AbstractContextManager[None]:
        """A block in which random numbers are those of step k."""
        seed = self.stream.step_seed(k)
        return _ORDINARY if seed is None else seeded(seed, device)


def fetch(stream: Stream, layout: tree.Partition, k: int) -> tree.Tensors:
    """The tensors of batch k.

    Raises:
        InputError: if it has another structure than the first.
    """
    partition, _, data = tree.partition(stream(k), lambda leaf: False)
    if partition != layout:
        raise InputError(
            f"the stream's batch {k} has the structure {partition.spec}, or other numbers in it,"
            f" than batch 0, which has {layout.spec}: every batch needs the same structure."
        )
    return data
