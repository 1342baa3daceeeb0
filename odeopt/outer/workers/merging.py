"""The result of all tasks from the results of each worker's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.engine.problem import check_lead
from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.errors import CompatibilityError, InputError, OdeoptError
from odeopt.inner.stream import Stream
from odeopt.outer.workers.agreement import Failure, Settings, compare, shorten, texts
from odeopt.outer.workers.workers import Workers
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
        return Stream(lambda k: self.take(stream(k), "the stream's batch"), None, stream.length)


class Part(NamedTuple):
    """What some tasks gave."""

    means: PyTree
    """Means over the tasks that did not fail."""
    rows: dict[str, PyTree]
    """Tensors with a leading task dimension, "values" and "status" among them."""
    stats: Stats


@dataclass(frozen=True, eq=False)
class _Head:
    """What a worker tells of its part before tensors are exchanged.

    Attributes:
        ok: how many of its tasks went well.
        stats: what they cost; None where there is no part.
        outline: `(means, rows)` of the part without any numbers.
        failure: why none of its tasks went well, if it has some.
    """

    ok: int = 0
    stats: Stats | None = None
    outline: PyTree = None
    failure: Failure | None = None


@dataclass(eq=False)
class _Own:
    """What this worker alone knows: its part, or an error with `all_failed`."""

    part: Part | None = None
    error: OdeoptError | None = None


def agreed(
    workers: Workers, what: str, settings: Settings, given: Mapping[str, Any],
    count: Callable[[], int],
) -> int:  # fmt: skip
    """The number of tasks, once all that decides a result is the same on every worker.

    Args:
        workers: who takes part.
        what: what will be done, for messages.
        settings: what every call uses.
        given: the arguments of this one, by name.
        count: the number of tasks in them.

    Raises:
        OdeoptError: as `count` does, on every worker.
        WorkerError: if a worker is lost, or something differs.
    """
    return workers.agree(
        f"the arguments of {what}",
        f"in {what}",
        lambda: ({**settings.texts(), **texts(given)}, count()),
    )


def merge(
    workers: Workers, what: str, tasks: int, compute: Callable[[Share], Part], device: torch.device
) -> Part:
    """The part of all tasks together, the same on every worker.

    One small exchange and the sum of `means` over workers, of as many bytes as the gradient; rows
    are gathered. Tasks of a worker that has none without a failure have NaN in all rows but
    "values" and "status".

    Args:
        workers: who takes part.
        what: what is being done, for messages.
        tasks: their number, the same on every worker, as is all that `compute` depends on.
        compute: the part of a share.
        device: where tensors are made that a worker has no part for.

    Raises:
        OdeoptError: as `compute` does, on every worker, with a note on whose tasks are meant; or
            if every task of every worker failed.
        WorkerError: if a worker is lost, or its part has another structure.
    """
    shares = [Share.of(rank, workers.count, tasks) for rank in range(workers.count)]
    share, own = shares[workers.rank], _Own()
    heads = workers.gather(what, lambda: _compute(share, workers.rank, compute, own))
    ok = sum(head.ok for head in heads)
    if ok == 0:
        raise own.error or _first_failure(heads)
    stats = [head.stats for head in heads if head.stats is not None]
    outlines = [head.outline for head in heads if head.stats is not None]
    # tensors of other shapes cannot be added up: the process would end without an error
    compare([shorten(texts({"the structure of the result": o})) for o in outlines], f"in {what}")
    part = own.part or _filled(outlines[0], share, own.error, device)
    weight = heads[workers.rank].ok / ok
    summed = workers.add(what, [leaf * weight for leaf in tree.tensors(part.means)])
    joined = workers.join(what, tree.tensors(part.rows), [each.tasks for each in shares])
    return Part(_with_tensors(part.means, summed), _with_tensors(part.rows, joined), _total(stats))


def _total(parts: list[Stats]) -> Stats:
    """Counts of the worker with the most, bytes of all; the plan of the first."""
    names = [entry.name for entry in fields(Stats) if entry.name != "plan"]
    counts = {
        name: (sum if name.endswith("_bytes") else max)(getattr(part, name) for part in parts)
        for name in names
    }
    return replace(parts[0], **counts)


def _compute(share: Share, rank: int, compute: Callable[[Share], Part], own: _Own) -> _Head:
    if share.tasks == 0:
        return _Head()
    try:
        part = compute(share)
    except OdeoptError as error:
        error.add_note(share.describe(rank))
        if error.all_failed is None:
            raise
        own.error = error
        return _Head(failure=Failure.of(error))
    _check_rows(part.rows, share)
    own.part = part
    ok = int((part.rows["status"] == Status.OK).sum())
    # not views of what they are like: a view is sent with all that it is a part of
    means = tree.map_tensors(lambda leaf: leaf.new_empty(0, *leaf.shape).cpu(), part.means)
    rows = tree.map_tensors(lambda leaf: leaf.new_empty(0, *leaf.shape[1:]).cpu(), part.rows)
    return _Head(ok, part.stats, (means, rows))


def _check_rows(rows: PyTree, share: Share) -> None:
    for path, leaf in zip(tree.paths(rows), tree.leaves(rows), strict=True):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != share.tasks):
            raise InputError(
                f"{path} of the result has the shape {tuple(leaf.shape)}; expected a leading"
                f" dimension of {share.tasks} tasks, so that workers can put theirs together."
            )


def _first_failure(heads: list[_Head]) -> OdeoptError:
    return next(h.failure.error(rank) for rank, h in enumerate(heads) if h.failure is not None)


def _filled(outline: PyTree, share: Share, error: OdeoptError | None, device: torch.device) -> Part:
    """The part of a worker that has no task that went well: zeros, and NaN in its rows."""

    def full(leaf: Tensor, lead: tuple[int, ...], value: float) -> Tensor:
        filling = value if leaf.is_floating_point() else 0
        return torch.full((*lead, *leaf.shape[1:]), filling, dtype=leaf.dtype, device=device)

    means = tree.map_tensors(lambda leaf: full(leaf, (), 0.0), outline[0])
    rows = tree.map_tensors(lambda leaf: full(leaf, (share.tasks,), torch.nan), outline[1])
    failed = None if error is None else error.all_failed
    if failed is not None:
        rows |= {"values": failed.values, "status": failed.status}
    return Part(means, rows, Stats())


def _with_tensors(like: PyTree, tensors: list[Tensor]) -> Any:
    """The tree with other tensors in the places of its own."""
    others = iter(tensors)
    return tree.map_tensors(lambda leaf: next(others), like)
