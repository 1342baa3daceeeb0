"""A method whose tasks are divided among workers."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.problem import count_tasks
from odeopt.grid import TimeGrid
from odeopt.outer.method import MetaGradient, MetaGrads, Method, TaskBatch, TaskData, as_task_batch
from odeopt.outer.workers import Part, Share, Workers, agreed, merge
from odeopt.outer.workers.agreement import Settings, first_batches
from odeopt.tools import tree
from odeopt.tools.types import PyTree


@final
class SpreadMethod(Method):
    """The same method; `__call__` and `evaluate` are made by all workers together.

    Args:
        method: a method whose results are means over tasks, as `Method` says.
        workers: who takes part.
    """

    def __init__(self, method: Method, workers: Workers) -> None:
        self._method, self._workers = method, workers
        self._settings = Settings({"the method": method})

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        batch = as_task_batch(task_batch)
        if self._workers.count == 1:
            return self._method(params, batch, hparams)

        def compute(share: Share) -> Part:
            return _part(self._method(params, _take(share, batch), hparams))

        what, device = "a meta-gradient", tree.tensors((params, hparams))[0].device
        tasks = self._agree(what, params, batch, hparams)
        means, rows, stats = merge(self._workers, what, tasks, compute, device)
        grads = MetaGrads(means["params"], means["hparams"])
        return MetaGradient(
            means["value"], grads, stats, rows["values"], rows["status"], rows["diagnostics"]
        )

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        return self._method.adapt(params, train, hparams)

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        batch, workers = as_task_batch(task_batch), self._workers
        if workers.count == 1:
            return self._method.evaluate(params, batch, hparams)

        tasks = self._agree("an evaluation", params, batch, hparams)

        def own() -> Tensor | None:
            share = Share.of(workers.rank, workers.count, tasks)
            if share.tasks == 0:
                return None
            return self._method.evaluate(params, _take(share, batch), hparams).cpu()

        found = workers.gather("an evaluation", own)
        values = torch.cat([part for part in found if part is not None])
        return values.to(tree.tensors(params)[0].device)

    def _agree(self, what: str, params: PyTree, batch: TaskBatch, hparams: PyTree) -> int:
        """The number of tasks, once all that decides the result is the same on every worker."""
        given = {
            "params and hparams": (params, hparams),
            "the tasks": first_batches((batch.train, batch.validation)),
        }
        return agreed(self._workers, what, self._settings, given, lambda: _count(batch))


def _count(batch: TaskBatch) -> int:
    return count_tasks((batch.train, batch.validation), TimeGrid.uniform(0.0, 0), None)


def _take(share: Share, batch: TaskBatch) -> TaskBatch:
    return TaskBatch(
        share.take(batch.train, "train"),
        share.take(batch.validation, "validation"),
        batch.names[share.first : share.stop],
    )


def _part(found: MetaGradient) -> Part:
    means = {
        "value": found.value, "params": found.grads.params, "hparams": found.grads.hparams,
    }  # fmt: skip
    rows = {
        "values": found.values, "status": found.status, "diagnostics": dict(found.diagnostics),
    }  # fmt: skip
    return Part(means, rows, found.stats)
