"""What a meta-learning method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odeopt.engine.problem import check_lead
from odeopt.engine.stats import Stats
from odeopt.errors import InputError
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.types import PyTree


class TaskBatch(NamedTuple):
    """Several tasks: pytrees whose tensors all have a leading task dimension."""

    train: PyTree
    validation: PyTree
    names: tuple[str, ...] = ()
    """What the tasks are called in reports of failures; their positions if it is empty."""


TaskData = TaskBatch | tuple[PyTree, PyTree]
"""What methods take: a pair (train, validation) will do."""


class MetaGrads(NamedTuple):
    r"""Gradients of the mean validation loss after adaptation, or what a method puts in place.

    $\frac1B\sum_n \partial J_n/\partial\theta$ (of eq. 1 of the paper), and the same for hparams;
    Reptile, for one, has $\theta - \psi$ there.
    """

    params: PyTree
    """Like the initialisation."""
    hparams: PyTree
    """Like hparams; None for leaves that are not learned."""


@dataclass(frozen=True, eq=False)
class MetaGradient:
    """What a method returns.

    Attributes:
        value: the mean validation loss after adaptation, of the tasks that did not fail.
        grads: the direction in which the outer optimiser descends.
        stats: what it cost.
        values: the validation loss of each task, shape [tasks].
        status: a `Status` code for each task, shape [tasks].
        diagnostics: what the adjoint reports, by name (see `Result.diagnostics`).
    """

    value: Tensor
    grads: MetaGrads
    stats: Stats
    values: Tensor
    status: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Method(KnownKeywords, ABC):
    """A meta-learning method: `method(params, task_batch, hparams) -> MetaGradient`.

    A method owns its loss and all its settings; what is learned is passed in: `params`, the
    initialisation, and `hparams`. Most methods are an `InnerLoop`.
    """

    @abstractmethod
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        """The meta-gradient over some tasks.

        Args:
            params: the initialisation, shared by the tasks.
            task_batch: a `TaskBatch`, or a pair (train, validation).
            hparams: what `init_hparams` returned, or the like.
        """

    @abstractmethod
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        """Adapted parameters, each leaf with a leading task dimension; without gradients.

        Args:
            params: the initialisation.
            train: training data with a leading task dimension.
            hparams: as in a call.
        """

    @abstractmethod
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        """The validation loss of each task after `adapt`, shape [tasks]; without gradients."""

    def init_hparams(self, params: PyTree, hparams: PyTree = None) -> PyTree:
        """The hparams to start with, from those of the loss (methods may learn more)."""
        del params
        return hparams


def as_task_batch(value: object) -> TaskBatch:
    """A `TaskBatch` as it is; a pair as one.

    Raises:
        InputError: if it is neither, or the numbers of tasks differ.
    """
    batch = value if isinstance(value, TaskBatch) else _from_pair(value)
    leads = [leaf.shape[0] for leaf in tree.tensors(batch.train) if leaf.ndim > 0]
    if leads:
        check_lead(batch.validation, leads[0], "validation")
    return batch


def _from_pair(value: object) -> TaskBatch:
    if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != 2:
        raise InputError(
            f"task_batch is a {type(value).__name__}; expected TaskBatch(train, validation), or a"
            " pair (train, validation), with a leading task dimension in every tensor."
        )
    return TaskBatch(*cast("tuple[Any, Any]", value))


def task_losses(
    loss: Callable[..., Any], params: PyTree, batch: PyTree, hparams: PyTree = None
) -> Tensor:
    """The loss of each task at its own parameters, shape [tasks]; without gradients."""

    def one(params: PyTree, batch: PyTree) -> Tensor:
        return call_loss(loss, hparams, params, batch, what="outer_loss")

    with torch.no_grad():
        return torch.func.vmap(one)(params, batch)
