"""A bilevel problem as a method of meta-learning with one task, so that it has its outer loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.gradient.result import Result, Solution
from odeopt.inner.stream import Stream
from odeopt.outer.method import MetaGradient, MetaGrads, Method, TaskBatch, TaskData
from odeopt.tools.types import PyTree


class Problem(Protocol):
    """What a descent asks of a bilevel problem."""

    def value_and_grad(
        self, hparams: PyTree, params: PyTree, batch: PyTree, outer_batch: PyTree
    ) -> Result:
        """The outer loss and its gradient."""
        ...

    def value(self, hparams: PyTree, params: PyTree, batch: PyTree, outer_batch: PyTree) -> Tensor:
        """The outer loss."""
        ...

    def solve(self, hparams: PyTree, params: PyTree, batch: PyTree) -> Solution:
        """The inner optimisation."""
        ...


@dataclass(frozen=True, eq=False)
class Given:
    """The data of one update, in one piece: there is no task dimension to look for."""

    train: PyTree
    held_out: PyTree


@dataclass(frozen=True, eq=False)
class Batches:
    """The data of each update by its number, with which functions are called."""

    batch: PyTree
    outer_batch: PyTree

    def __call__(self, update: int) -> TaskBatch:
        """The data of an update."""
        inner, outer = self.batch, self.outer_batch
        if callable(inner) and not isinstance(inner, Stream):
            inner = inner(update)
        outer = outer(update) if callable(outer) else outer
        return TaskBatch(Given(inner, outer), (), ("the inner problem",))


class Descent(Method):
    """The method whose parameters are hparams."""

    def __init__(self, problem: Problem, params: PyTree) -> None:
        self._problem, self._params = problem, params

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        given = _given(task_batch[0])
        res = self._problem.value_and_grad(params, self._params, given.train, given.held_out)
        grads = MetaGrads(res.grads.hparams, hparams)
        return MetaGradient(
            res.value, grads, res.stats, res.value[None], res.status[None], res.diagnostics
        )

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        with torch.no_grad():
            return self._problem.solve(params, self._params, _given(train).train).params

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        given = _given(task_batch[0])
        return self._problem.value(params, self._params, given.train, given.held_out)[None]


def _given(value: Any) -> Given:
    return cast("Given", value)
