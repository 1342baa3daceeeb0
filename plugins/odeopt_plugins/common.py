"""What several methods share: their common settings, and how an inner loop is put together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack, override

import odeopt
from odeopt.errors import AllFailed
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.outer.method import TaskData
from odeopt.tools import tree
from odeopt.tools.keywords import Keywords, keywords_of
from odeopt.tools.types import PyTree

Loss = Callable[..., Any]
"""`loss(params, batch)`, or `loss(params, batch, hparams)` where hparams is not None."""

P = ParamSpec("P")
R = TypeVar("R")


class Settings(TypedDict, total=False):
    """Settings that every method takes.

    Keys:
        compile: None or a compile backend (see `ODEOptimizer`).
        on_failure: "raise", or "skip" to leave failed tasks out of the means and report them.
        safety: limits beyond which a gradient is refused.
        horizon: a `TaskHorizon` to stop each task where its validation loss is least.
    """

    compile: str | None
    on_failure: OnFailure
    safety: odeopt.Safety | None
    horizon: odeopt.TaskHorizon | None


def for_each_task(params: PyTree, tasks: int) -> PyTree:
    """The same parameters for each task, with a leading dimension; views without a history."""
    return tree.map_tensors(lambda leaf: leaf.detach().expand(tasks, *leaf.shape), params)


def known_settings(method: Callable[P, R]) -> Callable[P, R]:
    """A decorator of a method's factory or `__init__`: it takes its own keywords and `Settings`.

    Raises:
        UnknownKeywordError: in the call, if there is any other.
    """
    known = Keywords((*keywords_of(method).names, *Settings.__annotations__), open=False)
    owner = method.__qualname__.removesuffix(".__init__")

    @wraps(method)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        known.check(owner, keywords)
        return method(*args, **keywords)

    return checked


def optimizer(
    field: odeopt.Field, solver: Any, adjoint: Any, settings: Settings, checkpoints: Any = None
) -> odeopt.ODEOptimizer:
    """The inner optimiser of a method with these settings."""
    safety, backend = settings.get("safety"), settings.get("compile")
    return odeopt.ODEOptimizer(field, solver, adjoint, checkpoints, safety, backend)


@known_settings
def inner_loop(
    field: odeopt.Field,
    solver: Any,
    adjoint: Any,
    grid: odeopt.TimeGrid,
    outer_loss: Loss,
    checkpoints: Any = None,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    """A method that is one `ODEOptimizer`."""
    opt = optimizer(field, solver, adjoint, settings, checkpoints)
    on_failure, horizon = settings.get("on_failure", "raise"), settings.get("horizon")
    return odeopt.InnerLoop(opt, outer_loss, grid, on_failure, horizon)


class Around(odeopt.Method):
    """A method that is an inner loop with other parameters and hparams than its own."""

    inner: odeopt.InnerLoop

    @abstractmethod
    def inside(self, params: PyTree, hparams: PyTree) -> tuple[PyTree, PyTree]:
        """The parameters and hparams of the inner loop."""

    def outside(self, params: PyTree, grads: odeopt.MetaGrads) -> odeopt.MetaGrads:
        """The gradients of the method, from those of the inner loop."""
        return grads

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> odeopt.MetaGradient:
        own, own_hparams = self.inside(params, hparams)
        gradient = self.inner(own, task_batch, own_hparams)
        return replace(gradient, grads=self.outside(params, gradient.grads))

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        own, own_hparams = self.inside(params, hparams)
        return self.inner.adapt(own, train, own_hparams)

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        own, own_hparams = self.inside(params, hparams)
        return self.inner.evaluate(own, task_batch, own_hparams)


def check_values(status: Tensor, values: Tensor, on_failure: OnFailure) -> Tensor:
    """The status, with the tasks whose validation loss is not finite.

    Raises:
        DivergenceError: if a task failed and failures are to be raised, or every task failed.
    """
    lost = (status == odeopt.Status.OK) & ~torch.isfinite(values)
    status = torch.where(lost, int(odeopt.Status.VALUE_NOT_FINITE), status)
    failed: list[int] = (status != odeopt.Status.OK).nonzero().flatten().tolist()
    if failed and (on_failure == "raise" or len(failed) == len(status)):
        error = odeopt.DivergenceError(
            f"task {failed[0]}: the state or the validation loss is not finite (status"
            f" {odeopt.Status(int(status[failed[0]])).name}). Take smaller steps, or look for NaN"
            " in the data."
        )
        if on_failure == "skip":
            error.all_failed = AllFailed(values, status)
        raise error
    return status


def mean_over(status: Tensor, values: Tensor) -> Tensor:
    """The mean over tasks that did not fail, of values [tasks, ...]."""
    ok = status == odeopt.Status.OK
    return tree.zero_unless(ok, values).sum(0) / ok.sum()
