"""The result of all tasks from the results of each worker's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.errors import InputError, OdeoptError
from odeopt.outer.workers.agreement import Settings, compare, shorten, texts
from odeopt.outer.workers.failure import Failure
from odeopt.outer.workers.share import Share
from odeopt.outer.workers.workers import Workers
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently
from odeopt.tools.types import PyTree


class Part(NamedTuple):
    """What some tasks gave."""

    means: PyTree
    """Means over the tasks that did not fail."""
    rows: dict[str, PyTree]
    """Tensors with a leading task dimension, "values" and "status" among them."""
    stats: Stats


@dataclass(frozen=True, eq=False)
class _Head:
    """What each worker tells of its part before tensors are exchanged."""

    share: Share
    ok: int = 0
    stats: Stats | None = None
    outline: PyTree = None
    """Of its part, if it has one."""
    failure: Failure | None = None
    """Why none of its tasks went well, if it has some."""


@dataclass(frozen=True)
class _Like:
    """A tensor's dtype and shape, without its tasks."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(eq=False)
class _Own:
    """What this worker knows of its own part."""

    part: Part | None = None
    error: OdeoptError | None = None
    """With `all_failed`."""


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

    def compared() -> tuple[dict[str, str], int]:
        return {**settings.texts(), **texts(given)}, count()

    return workers.agree(f"the arguments of {what}", f"in {what}", compared)


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
    own = _Own()
    share = Share.of(workers.rank, workers.count, tasks)
    heads = workers.gather(what, lambda: _compute(share, workers.rank, compute, own))
    ok = sum(head.ok for head in heads)
    if ok == 0:
        _raise(heads, own)
    outlines = [head.outline for head in heads if head.stats is not None]
    _check_alike(outlines, what)
    part = _fill(outlines[0], share, own, device) if own.part is None else own.part
    weight = heads[workers.rank].ok / ok
    summed = workers.add(what, [leaf * weight for leaf in tree.tensors(part.means)])
    joined = workers.join(what, tree.tensors(part.rows), [head.share.tasks for head in heads])
    stats = [head.stats for head in heads if head.stats is not None]
    return Part(_put(part.means, summed), _put(part.rows, joined), add_stats(stats))


def add_stats(parts: list[Stats]) -> Stats:
    """Counts of the worker with the most, bytes of all; the plan of the first."""
    names = [entry.name for entry in fields(Stats) if entry.name != "plan"]
    found = {
        name: (sum if name.endswith("_bytes") else max)(getattr(part, name) for part in parts)
        for name in names
    }
    return replace(parts[0], **found)


def _compute(share: Share, rank: int, compute: Callable[[Share], Part], own: _Own) -> _Head:
    if share.tasks == 0:
        return _Head(share)
    try:
        part = compute(share)
    except OdeoptError as error:
        error.add_note(share.describe(rank))
        if error.all_failed is None:
            raise
        own.error = error
        return _Head(share, failure=Failure.of(error))
    _check_rows(part.rows, share)
    own.part = part
    ok = int((part.rows["status"] == Status.OK).sum())
    return _Head(share, ok, part.stats, _outline(part))


def _check_rows(rows: PyTree, share: Share) -> None:
    for path, leaf in zip(tree.paths(rows), tree.leaves(rows), strict=True):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != share.tasks):
            raise InputError(
                f"{path} of the result has the shape {tuple(leaf.shape)}; expected a leading"
                f" dimension of {share.tasks} tasks, so that workers can put theirs together."
            )


def _raise(heads: list[_Head], own: _Own) -> None:
    if own.error is not None:
        raise own.error
    rank, failure = next((r, h.failure) for r, h in enumerate(heads) if h.failure is not None)
    raise failure.error(rank)


def _outline(part: Part) -> tuple[PyTree, PyTree]:
    means = tree.map_tensors(lambda leaf: _Like(leaf.dtype, tuple(leaf.shape)), part.means)
    rows = tree.map_tensors(lambda leaf: _Like(leaf.dtype, tuple(leaf.shape[1:])), part.rows)
    return means, rows


def _check_alike(outlines: list[PyTree], what: str) -> None:
    """Tensors of other shapes cannot be added up: the process would end without an error."""
    told = [shorten({"the structure of the result": describe_leniently(o)}) for o in outlines]
    compare(told, f"in {what}")


def _fill(outline: PyTree, share: Share, own: _Own, device: torch.device) -> Part:
    """The part of a worker that has no task that went well: zeros, and NaN in its rows."""
    means = _full(outline[0], (), 0.0, device)
    rows = _full(outline[1], (share.tasks,), torch.nan, device)
    failed = None if own.error is None else own.error.all_failed
    if failed is not None:
        rows |= {"values": failed.values, "status": failed.status}
    return Part(means, rows, Stats())


def _full(outline: PyTree, lead: tuple[int, ...], value: float, device: torch.device) -> Any:
    def make(leaf: Any) -> Any:
        if not isinstance(leaf, _Like):
            return leaf
        filling = value if leaf.dtype.is_floating_point else 0
        return torch.full((*lead, *leaf.shape), filling, dtype=leaf.dtype, device=device)

    return tree.pytree.tree_map(make, outline)


def _put(like: PyTree, tensors: list[Tensor]) -> Any:
    """The tree with other tensors in the places of its own."""
    given = iter(tensors)
    return tree.map_tensors(lambda leaf: next(given), like)
