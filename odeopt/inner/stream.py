"""Streams: batches, and random numbers, that change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.tools import tree
from odeopt.tools.arguments import check_integer
from odeopt.tools.seeds import generator, mix
from odeopt.tools.shown import Shown, shown
from odeopt.tools.types import PyTree


@final
class Stream(Shown):
    """The batch of each step, as a function of the step's index alone.

    Each step is evaluated again in the backward sweep, so that the batch of step k must be the
    same whenever it is asked for. Pass a stream where a solve takes its batch.

    Examples:
        >>> import torch, odeopt
        >>> x, y = torch.randn(100, 3), torch.randn(100)
        >>> stream = odeopt.Stream.minibatches((x, y, torch.arange(100)), batch_size=20, seed=0)
        >>> [leaf.shape[0] for leaf in stream(7)]
        [20, 20, 20]

    Args:
        batch: `batch(k)`, a pytree of one structure for every step k = 0, 1, ...
        seed: None, or the seed of random numbers (dropout, augmentation, noise): those that the
            loss draws in step k then come from torch's generator started at (seed, k), in the
            forward sweep and in every replay. Steps with random numbers are not compiled.
        length: the number of steps there are batches for; None if there is no end.
    """

    def __init__(
        self, batch: Callable[[int], PyTree], seed: int | None = None, length: int | None = None
    ) -> None:
        if not callable(batch):
            raise InputError(f"batch is {shown(batch)}; expected a function of the step's index.")
        self._batch = batch
        self.seed = None if seed is None else check_integer(seed, "seed", at_least=0)
        self.length = length

    @override
    def _shown(self) -> Iterator[str]:
        own = self._batch
        known = own.settings() if isinstance(own, _Batches) else {"batch": own}
        told = {**known, "seed": self.seed, "length": self.length}
        yield from (f"{n}={shown(v)}" for n, v in told.items() if v is not None)

    def __call__(self, k: int) -> PyTree:
        """The batch of step k."""
        return self._batch(k)

    def step_seed(self, k: int) -> int | None:
        """The seed of the random numbers of step k; None if there are to be none."""
        return None if self.seed is None else mix(self.seed, k)

    @classmethod
    def constant(cls, batch: PyTree, seed: int) -> Stream:
        """One batch for every step, with random numbers of each step's own."""
        return cls(_Batches(lambda k: batch, data=batch), seed)

    @classmethod
    def stacked(cls, batches: PyTree, seed: int | None = None) -> Stream:
        """Step k takes entry k of every tensor."""
        length = _common_length(batches, "batches")
        entry = lambda k: tree.map_tensors(lambda leaf: leaf[k], batches)  # noqa: E731
        return cls(_Batches(entry, data=batches), seed, length)

    @classmethod
    def minibatches(
        cls, data: PyTree, batch_size: int, seed: int, shuffle: bool = True,
        random_loss: bool = False,
    ) -> Stream:  # fmt: skip
        """Minibatches of stacked examples, in a new order in each epoch, without end.

        Args:
            data: tensors whose leading dimension counts the examples. Add `torch.arange(n)` to
                it where the loss needs to know which examples it sees (for weights, say).
            batch_size: examples in a step; the rest of an epoch that does not fill one is left
                out.
            seed: fixes the orders.
            shuffle: whether examples are shuffled.
            random_loss: whether the loss draws random numbers (see `seed` above).
        """
        sampler = _Sampler(_common_length(data, "data"), batch_size, seed, shuffle)
        leaves, assemble = tree.leaves(data), tree.assembler(tree.structure(data))

        def batch(k: int) -> PyTree:
            indices = sampler(k)
            return assemble(_entry(leaf, indices) for leaf in leaves)

        batches = _Batches(batch, data=data, size=batch_size, order=seed, shuffle=shuffle)
        return cls(batches, seed if random_loss else None)

    @classmethod
    def from_dataset(
        cls, dataset: Any, batch_size: int, seed: int, shuffle: bool = True,
        collate: Callable[[Sequence[Any]], PyTree] | None = None, random_loss: bool = False,
    ) -> Stream:  # fmt: skip
        """Minibatches of a map-style dataset, as a `DataLoader` makes them, at any step's index.

        Args:
            dataset: anything with `len` and integer indices, e.g. a `torch.utils.data.Dataset`
                that gives the same item whenever it is asked for it.
            batch_size: examples in a step; an incomplete last batch is left out.
            seed: fixes the orders.
            shuffle: whether examples are shuffled.
            collate: makes a batch of a list of items, `default_collate` if it is None.
            random_loss: whether the loss draws random numbers (see `seed` above).
        """
        join = torch.utils.data.default_collate if collate is None else collate
        sampler = _Sampler(len(dataset), batch_size, seed, shuffle)
        fetch = lambda k: join([dataset[i] for i in sampler(k).tolist()])  # noqa: E731
        parts = {"data": dataset, "size": batch_size, "order": seed, "shuffle": shuffle}
        return cls(_Batches(fetch, **parts, collate=join), seed if random_loss else None)


class _Batches:
    """A function of the step's index that knows what it was made of."""

    def __init__(self, batch: Callable[[int], PyTree], **parts: Any) -> None:
        self._batch, self._parts = batch, parts

    def __call__(self, k: int) -> PyTree:
        return self._batch(k)

    def settings(self) -> Mapping[str, Any]:
        """What tells two of them apart; orders of examples are kept beside, which come and go."""
        return self._parts


def _entry(leaf: Any, indices: Tensor) -> Any:
    return leaf.index_select(0, indices.to(leaf.device)) if isinstance(leaf, Tensor) else leaf


class _Sampler:
    """The examples of step k."""

    def __init__(self, examples: int, batch_size: int, seed: int, shuffle: bool) -> None:
        if check_integer(batch_size, "batch_size") > examples:
            raise InputError(
                f"batch_size is {batch_size}; expected 1 to {examples}, the number of examples."
            )
        self._examples, self._size, self._shuffle = examples, batch_size, shuffle
        self._seed = check_integer(seed, "seed", at_least=0)
        self._known = (-1, torch.empty(0))  # one pair, so that threads read both or neither

    def __call__(self, k: int) -> Tensor:
        epoch, position = divmod(k, self._examples // self._size)
        known, order = self._known
        if epoch != known:
            order = torch.arange(self._examples)
            if self._shuffle:
                order = torch.randperm(self._examples, generator=generator(self._seed, epoch))
            self._known = epoch, order
        return order.narrow(0, position * self._size, self._size)


def _common_length(data: PyTree, what: str) -> int:
    shapes = [tuple(leaf.shape) for leaf in tree.tensors(data)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise InputError(f"{what} has tensors of shapes {shapes}; expected one leading dimension.")
    return shapes[0][0]
