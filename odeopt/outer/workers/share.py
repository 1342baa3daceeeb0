"""The tasks of a batch that one worker has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from odeopt.engine.problem import check_lead
from odeopt.errors import CompatibilityError
from odeopt.inner.stream import Stream
from odeopt.tools import tree
from odeopt.tools.types import PyTree


@dataclass(frozen=True)
class Share:
    """Tasks `first` to `stop - 1` of `total`; none where there are more workers than tasks."""

    first: int
    stop: int
    total: int

    @classmethod
    def of(cls, rank: int, workers: int, total: int) -> Share:
        """Worker `rank` of so many; the first ones have one task more if it must be."""
        each, more = divmod(total, workers)
        first = rank * each + min(rank, more)
        return cls(first, first + each + (rank < more), total)

    @property
    def tasks(self) -> int:
        """How many they are."""
        return self.stop - self.first

    def describe(self, rank: int) -> str:
        """Which tasks an error of this worker speaks of."""
        return (
            f"on worker {rank}, which has tasks {self.first} to {self.stop - 1} of the"
            f" {self.total} and counts them from 0"
        )

    def take(self, batch: PyTree, what: str) -> PyTree:
        """These tasks of a batch, or of each batch of a stream; they require grad as before.

        Raises:
            InputError: if a tensor has no leading task dimension of `total`.
            CompatibilityError: if a stream draws random numbers, which depend on how many tasks
                are solved together.
        """
        if isinstance(batch, Stream):
            return self._stream(batch)
        if any(isinstance(leaf, Stream) for leaf in tree.leaves(batch)):
            return tree.pytree.tree_map(lambda leaf: self.take(leaf, what), batch)
        check_lead(batch, self.total, what)
        return tree.map_tensors(self._rows, batch)

    def _rows(self, leaf: Tensor) -> Tensor:
        return leaf.detach()[self.first : self.stop].requires_grad_(leaf.requires_grad)

    def _stream(self, stream: Stream) -> Stream:
        if stream.seed is not None:
            raise CompatibilityError(
                "the batch is a Stream with a seed: the random numbers of a task depend on how many"
                " tasks are solved together, so that spreading them would change the gradient."
                " Draw them beforehand and pass them in the batches, or use one worker."
            )

        def batch(k: int) -> Any:
            return self.take(stream(k), "the stream's batch")

        return Stream(batch, None, stream.length)
