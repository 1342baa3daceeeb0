"""One call, made ready: user's pytrees in, flat tensors and a layout out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from odeopt.engine.flat import Layout
from odeopt.errors import CapturedTensorError, InputError
from odeopt.grid import TimeGrid, check_grid
from odeopt.inner.base import InnerOptimizer
from odeopt.inner.stream import Stream
from odeopt.solver.dynamics import Data, Theta
from odeopt.tools import tree
from odeopt.tools.types import PyTree, Tensors

Wanted = Callable[[object], bool]


@dataclass(frozen=True, eq=False)
class Problem:
    """The tensors of one solve, with their autograd history, and how they are laid out.

    Attributes:
        y0: the initial state, shape [d] or [tasks, d].
        theta: differentiable inputs of the velocity.
        data: other tensors.
        grid: on the device of the state; with tasks, of shape [tasks, N].
        layout: how to read the flat tensors.
        tasks: the number of tasks, or None.
        stream: where the batch of each step comes from, if it is not the same for all; `data`
            then holds the first.
    """

    y0: Tensor
    theta: Theta
    data: Data
    grid: TimeGrid
    layout: Layout
    tasks: int | None
    stream: Stream | None = None

    def tensors(self) -> list[Tensor]:
        """Every tensor of it."""
        return tree.tensors(self._inputs())

    def with_tensors(self, tensors: Iterable[Tensor]) -> Problem:
        """The problem with others in place of `tensors()`."""
        own = iter(tensors)
        y0, times, dt, stops, theta, data = tree.map_tensors(lambda _: next(own), self._inputs())
        grid = TimeGrid(times, self.grid.observe, dt=dt, stops=stops)
        return replace(self, y0=y0, grid=grid, theta=theta, data=data)

    def detach(self) -> Problem:
        """The same tensors without their autograd history."""
        inputs = (self.y0, self.theta, self.data)
        y0, theta, data = tree.map_tensors(Tensor.detach, inputs)
        return replace(self, y0=y0, theta=theta, data=data, grid=self.grid.detach())

    def _inputs(self) -> PyTree:
        grid = self.grid
        return self.y0, grid.times, grid.dt, grid.stops, self.theta, self.data


@dataclass(frozen=True, eq=False)
class Start:
    """The initial state and the shared inputs, flat."""

    y0: Tensor
    diff: Tensors
    data: Tensors
    state: tree.Ravel
    shared: tree.Partition


def start(
    field: InnerOptimizer, params: PyTree, hparams: PyTree, wanted: Wanted, state: PyTree = None
) -> Start:
    """`field.init`, flattened; `state` takes the place of the initial state if it is given."""
    first, consts = field.init(params, hparams)
    y0, ravel = tree.ravel(first, "the initial state")
    if state is not None:
        y0 = _warm_state(ravel, state)
    shared, diff, data = tree.partition((consts, hparams), wanted)
    return Start(y0, diff, data, ravel, shared)


def assemble(begin: Start, batch: PyTree, grid: TimeGrid, tasks: bool, wanted: Wanted) -> Problem:
    """Put the start, the batch and the grid together, and check that they fit."""
    check_grid(grid)
    stream = batch if isinstance(batch, Stream) else None
    if stream is not None:
        batch, wanted = _first_batch(stream, grid), lambda leaf: False
    partition, diff, data = tree.partition(batch, wanted)
    _check_dtypes((*begin.diff, *diff), (*begin.data, *data))
    lead = begin.y0.shape[0] if begin.y0.ndim == 2 else None
    count = count_tasks(batch, grid, lead) if tasks else None
    if not tasks and grid.tasks is not None:
        raise InputError(
            f"the grid holds {grid.tasks} tasks, shape {tuple(grid.times.shape)}, but tasks is"
            " False: pass tasks=True, or a grid with times of shape [N + 1]."
        )
    y0 = begin.y0
    if count is not None:
        y0 = y0 if lead is not None else y0.expand(count, -1)
        grid = grid.for_tasks(count)
    return Problem(
        y0,
        Theta(begin.diff, diff),
        Data(begin.data, data),
        grid.to(begin.y0.device),
        Layout(begin.state, begin.shared, partition),
        count,
        stream,
    )


def _check_dtypes(differentiable: Sequence[Tensor], data: Sequence[Tensor]) -> None:
    """Raise on inputs whose gradient would be inexact or lost."""
    for leaf in differentiable:
        if leaf.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"hparams or the batch hold a differentiable tensor of dtype {leaf.dtype};"
                " expected torch.float32 or torch.float64. Convert it with .float()."
            )
    for leaf in data:
        if leaf.is_complex() and leaf.requires_grad:
            raise CapturedTensorError(
                f"a tensor of dtype {leaf.dtype} requires grad, but only real tensors are"
                " differentiated: pass torch.view_as_real(x), or detach it."
            )


def check_lead(batch: PyTree, tasks: int, what: str) -> None:
    """Raise unless every tensor of a batch has that leading task dimension."""
    for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != tasks):
            raise InputError(
                f"{what}{path} has shape {tuple(leaf.shape)}; expected a leading task dimension of"
                f" {tasks}, since tasks=True."
            )


def check_arrays(batch: PyTree, what: str) -> None:
    """Raise on numpy arrays, which could be neither batched nor moved."""
    for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        if isinstance(leaf, np.ndarray):
            raise InputError(f"{what}{path} is a numpy array: pass torch.from_numpy(array).")


def _warm_state(ravel: tree.Ravel, state: PyTree) -> Tensor:
    shapes = [leaf.shape for leaf in tree.tensors(state)]
    extra = {s[: len(s) - len(own)] for s, own in zip(shapes, ravel.shapes, strict=False)}
    if len(extra) == 1 and len(next(iter(extra))) == 1:  # one state per task
        return torch.func.vmap(lambda one: ravel.flatten(one, "state"))(state)
    return ravel.flatten(state, "state")


def count_tasks(batch: PyTree, grid: TimeGrid, lead: int | None) -> int:
    """The number of tasks, which batch, grid and a warm start (of `lead` rows) must agree on."""
    sizes = [leaf.shape[0] for leaf in tree.tensors(batch) if leaf.ndim > 0]
    tasks = lead or grid.tasks or (sizes[0] if sizes else None)
    if tasks is None:
        raise InputError(
            "tasks=True, but neither the batch nor the grid has a task dimension: give every"
            " tensor of the batch a leading task dimension."
        )
    check_lead(batch, tasks, "batch")
    if grid.tasks not in (None, tasks):
        raise InputError(f"the grid holds {grid.tasks} tasks, but the batch holds {tasks}.")
    if tasks == 0:
        raise InputError("tasks=True, but the task dimension has length 0.")
    return tasks


def _first_batch(stream: Stream, grid: TimeGrid) -> PyTree:
    if stream.length is not None and stream.length < grid.steps:
        raise InputError(f"the stream holds {stream.length} batches for {grid.steps} steps.")
    batch = stream(0) if stream.length != 0 else ()
    if any(leaf.requires_grad for leaf in tree.tensors(batch)):
        raise CapturedTensorError(
            "a batch of the stream requires grad: its gradient would be lost. Put what is to be"
            " differentiated into hparams, and indices into the stream."
        )
    check_arrays(batch, "the stream's batch")
    return batch
