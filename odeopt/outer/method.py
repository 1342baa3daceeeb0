"""What a meta-learning method is, what it takes, and those that are one `ODEOptimizer`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.problem import check_lead
from odeopt.engine.stats import Stats, cost
from odeopt.errors import InputError
from odeopt.gradient.result import tasks, value_and_norms
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.grid import TimeGrid, check_grid
from odeopt.optimizer import ODEOptimizer
from odeopt.tools import tree
from odeopt.tools.arguments import call_loss, check_integer
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.seeds import generator
from odeopt.tools.shown import Shown, call, counted, norm, shown
from odeopt.tools.types import PyTree


class TaskBatch(NamedTuple):
    """Several tasks: pytrees whose tensors all have a leading task dimension."""

    train: PyTree
    validation: PyTree
    names: tuple[str, ...] = ()
    """What the tasks are called in reports of failures; their positions if it is empty."""

    @override
    def __repr__(self) -> str:
        leads = [leaf.shape[0] for leaf in tree.tensors(self.train) if leaf.ndim]
        parts = [f"{name}={shown(getattr(self, name))}" for name in self._fields]
        return call("TaskBatch", [*(counted(n, "task") for n in leads[:1]), *parts])


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

    @override
    def __repr__(self) -> str:
        parts = [norm(name, tree.tensors(getattr(self, name))) for name in self._fields]
        return call("MetaGrads", chain(*parts))


@dataclass(frozen=True, eq=False)
class MetaGradient(Shown):
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

    @override
    def _shown(self) -> Iterator[str]:
        yield from value_and_norms(self.value, self.grads)
        yield from tasks(self.status)
        yield from cost(self.stats)


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
    if not isinstance(value, TaskBatch):
        if not isinstance(value, tuple) or len(cast("tuple[Any, ...]", value)) != 2:
            raise InputError(
                f"task_batch is a {type(value).__name__}; expected TaskBatch(train, validation),"
                " or a pair (train, validation), with a leading task dimension in every tensor."
            )
        value = TaskBatch(*cast("tuple[Any, Any]", value))
    leads = [leaf.shape[0] for leaf in tree.tensors(value.train) if leaf.ndim > 0]
    if leads:
        check_lead(value.validation, leads[0], "validation")
    return value


def task_losses(
    loss: Callable[..., Any], params: PyTree, batch: PyTree, hparams: PyTree = None
) -> Tensor:
    """The loss of each task at its own parameters, shape [tasks]; without gradients."""

    def one(params: PyTree, batch: PyTree) -> Tensor:
        return call_loss(loss, hparams, params, batch, what="outer_loss")

    with torch.no_grad():
        return torch.func.vmap(one)(params, batch)


@dataclass(frozen=True)
class TaskHorizon(Shown):
    """A horizon per task: where its validation loss is least along the inner trajectory.

    Since the derivative of the validation loss along the trajectory vanishes there (or the
    horizon is an end of the grid), the horizon may be taken for a constant. Costs one more
    forward solve and one validation loss per look.

    Args:
        every: look at every so-many-th state.
        patience: stop looking after so many looks without a new least value.
    """

    every: int = 10
    patience: int = 5

    def __post_init__(self) -> None:
        check_integer(self.every, "TaskHorizon.every")
        check_integer(self.patience, "TaskHorizon.patience")

    def looks(self, steps: int) -> list[int]:
        """The states at which the validation loss is evaluated."""
        return sorted({*range(0, steps, self.every), steps})

    def choose(self, looks: list[int], values: Tensor) -> Tensor:
        """The step at which each task stops, shape [tasks].

        Args:
            looks: state indices.
            values: validation losses there, shape [looks, tasks].
        """
        values = torch.where(values.isnan(), torch.inf, values)
        least, best = values[0], torch.zeros_like(values[0], dtype=torch.int64)
        for look, losses in enumerate(values[1:], start=1):
            better = (look - best <= self.patience) & (losses < least)
            least, best = torch.where(better, losses, least), torch.where(better, look, best)
        return torch.tensor(looks, device=values.device)[best]


class InnerLoop(Method):
    r"""A method whose meta-gradient is that of one `ODEOptimizer`: $\frac1B\sum_n dJ_n/d\theta$.

    $J_n$ is the validation loss of task n after the inner optimisation from $\theta$. Tensors of a
    task batch have a leading task dimension; all tasks are in memory together.

    Cost: that of `ODEOptimizer.value_and_grad` with tasks, and of the horizon's search.

    Args:
        opt: the inner optimiser.
        outer_loss: the validation loss after adaptation.
        grid: the steps.
        on_failure: "raise", or "skip" to leave failed tasks out of the means and report them.
        horizon: None for the whole grid, or a horizon of each task's own; `adapt` and `evaluate`,
            which may not look at validation data, take the whole grid.
    """

    def __init__(
        self,
        opt: ODEOptimizer,
        outer_loss: Callable[..., Any],
        grid: TimeGrid,
        on_failure: OnFailure = "raise",
        horizon: TaskHorizon | None = None,
    ) -> None:
        self.opt, self.outer_loss, self.grid = opt, outer_loss, check_grid(grid)
        self.on_failure: OnFailure = on_failure
        self.horizon = horizon
        self._differentiate = opt.value_and_grad(outer_loss, tasks=True, on_failure=on_failure)

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        batch, grid, looked = as_task_batch(task_batch), self.grid, Stats()
        if self.horizon is not None:
            grid, looked = self.stopped_grid(params, batch, hparams)
        res = self._differentiate(params, batch.train, grid, batch.validation, hparams)
        assert res.values is not None, "there are tasks"
        res.stats.gradient_evaluations += looked.gradient_evaluations
        grads = MetaGrads(res.grads.params, res.grads.hparams)
        return MetaGradient(res.value, grads, res.stats, res.values, res.status, res.diagnostics)

    @override
    def adapt(self, params: PyTree, train: PyTree, hparams: PyTree = None) -> PyTree:
        with torch.no_grad():
            return self.opt.solve(params, train, self.grid, hparams, tasks=True).params

    @override
    def evaluate(self, params: PyTree, task_batch: TaskData, hparams: PyTree = None) -> Tensor:
        batch = as_task_batch(task_batch)
        adapted = self.adapt(params, batch.train, hparams)
        return task_losses(self.outer_loss, adapted, batch.validation, hparams)

    def stopped_grid(
        self, params: PyTree, batch: TaskBatch, hparams: PyTree
    ) -> tuple[TimeGrid, Stats]:
        """The grid with each task's own horizon, and what it cost to find it."""
        assert self.horizon is not None, "asked for only if there is one"
        looks = self.horizon.looks(self.grid.steps)
        observing = self.grid.observing(looks)
        with torch.no_grad():
            sol = self.opt.solve(
                params, batch.train, observing, hparams, tasks=True, on_failure="skip"
            )
            read = [self.opt.field.readout(state) for state in sol.observed]
            losses = [task_losses(self.outer_loss, p, batch.validation, hparams) for p in read]
        stop = self.horizon.choose(looks, torch.stack(losses))
        return self.grid.to(stop.device).stopping(stop), sol.stats


@dataclass(frozen=True, eq=False)
class TaskPool(Shown):
    """Meta-batches of tasks drawn without replacement, anew in each epoch.

    `pool(k)` is the meta-batch of update k. It depends on k and the seed alone, so that an
    interrupted run goes on exactly where it was.

    Args:
        train: training data; every tensor has a leading dimension, one entry per task.
        validation: validation data, likewise.
        batch_size: tasks per meta-batch; the last few tasks of an epoch are left out if they do
            not fill one.
        seed: fixes the order.
        names: what the tasks are called in reports of failures; their indices by default.
    """

    train: PyTree
    validation: PyTree
    batch_size: int = 5
    seed: int = 0
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not any(leaf.ndim > 0 for leaf in tree.tensors(self.train)):
            raise InputError("train holds no tensor with a leading task dimension.")
        for batch, what in ((self.train, "train"), (self.validation, "validation")):
            check_lead(batch, len(self), what)
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(self):  # pyright: ignore
            raise InputError(
                f"batch_size is {shown(size)}; expected an integer from 1 to {len(self)}, the"
                " number of tasks."
            )
        if self.names and len(self.names) != len(self):
            raise InputError(f"there are {len(self.names)} names for {len(self)} tasks.")

    def settings(self) -> Mapping[str, Any]:
        """What tells two pools apart: everything but the names, which are for reports."""
        return {
            "train": self.train, "validation": self.validation, "batch_size": self.batch_size,
            "seed": self.seed,
        }  # fmt: skip

    def __len__(self) -> int:
        """The number of tasks."""
        return next(leaf.shape[0] for leaf in tree.tensors(self.train) if leaf.ndim > 0)

    def __call__(self, update: int) -> TaskBatch:
        """The meta-batch of an update."""
        return self.select(self.indices(update))

    def indices(self, update: int) -> list[int]:
        """The tasks of an update."""
        per_epoch = len(self) // self.batch_size
        epoch, position = divmod(update, per_epoch)
        order = torch.randperm(len(self), generator=generator(self.seed, epoch))
        return order[position * self.batch_size :][: self.batch_size].tolist()

    def select(self, indices: Sequence[int]) -> TaskBatch:
        """Some tasks."""

        def pick(leaf: Tensor) -> Tensor:
            return leaf[torch.tensor(list(indices), device=leaf.device)]

        names = tuple(self.names[i] if self.names else f"task {i}" for i in indices)
        return TaskBatch(
            tree.map_tensors(pick, self.train), tree.map_tensors(pick, self.validation), names
        )
