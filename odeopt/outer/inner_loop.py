"""Methods whose meta-gradient is that of one `ODEOptimizer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.stats import Stats
from odeopt.errors import InputError
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.grid import TimeGrid
from odeopt.optimizer import ODEOptimizer
from odeopt.outer.method import (
    MetaGradient,
    MetaGrads,
    Method,
    TaskBatch,
    TaskData,
    as_task_batch,
    task_losses,
)
from odeopt.tools.types import PyTree


@dataclass(frozen=True)
class TaskHorizon:
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
        for name in ("every", "patience"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"TaskHorizon.{name} is {value!r}; expected a positive integer.")

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
        for look, found in enumerate(values[1:], start=1):
            waiting = look - best <= self.patience
            better = waiting & (found < least)
            least, best = torch.where(better, found, least), torch.where(better, look, best)
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
        self.opt, self.outer_loss, self.grid = opt, outer_loss, grid
        self.on_failure: OnFailure = on_failure
        self.horizon = horizon
        self._differentiate = opt.value_and_grad(outer_loss, tasks=True, on_failure=on_failure)

    @override
    def __call__(
        self, params: PyTree, task_batch: TaskData, hparams: PyTree = None
    ) -> MetaGradient:
        batch, looked = as_task_batch(task_batch), Stats()
        grid = self.grid
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
        steps = self.grid.steps
        looks = self.horizon.looks(steps)
        observing = self.grid.observing(looks)
        with torch.no_grad():
            sol = self.opt.solve(
                params, batch.train, observing, hparams, tasks=True, on_failure="skip"
            )
            read = [self.opt.field.readout(state) for state in sol.observed]
            losses = [task_losses(self.outer_loss, p, batch.validation, hparams) for p in read]
            values = torch.stack(losses)
        stop = self.horizon.choose(looks, values)
        return self.grid.to(stop.device).stopping(stop), sol.stats
