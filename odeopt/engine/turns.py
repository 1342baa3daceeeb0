"""Tasks one after the other, where that is faster than all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odeopt.engine.problem import Problem
from odeopt.solver.base import RecordedStep, StepGradient
from odeopt.tools import tree

FEW = 4
"""Up to so many tasks one after the other are faster on a CPU: `vmap` takes about four times as
long for an operation as plain autograd, whatever the number of tasks."""

LARGE = 2**18
"""Bytes of a task's state from which on this holds for any number of tasks: the operations
themselves then take the time."""


def takes_turns(problem: Problem) -> bool:
    """Whether the tasks of a problem are better solved one after the other, by plain autograd.

    Not so where steps draw random numbers, which `vmap` draws for all tasks at once.
    """
    y0, tasks, stream = problem.y0, problem.tasks, problem.stream
    if tasks is None or y0.device.type != "cpu" or (stream and stream.seed is not None):
        return False
    return tasks <= FEW or y0.nbytes >= LARGE * tasks


def in_turn(kernel: Callable[..., Any], tasks: int) -> Callable[..., Any]:
    """A kernel(*tensors, theta, data) of one task, called for each of them."""

    def each_task(*args: Any) -> Any:
        *tensors, theta, data = args
        return _together([
            kernel(*(x[i] for x in tensors), theta.of_task(i), data.of_task(i))
            for i in range(tasks)
        ])  # fmt: skip

    return each_task


def _together(results: Sequence[Any]) -> Any:
    """The results of all tasks as one, with a leading task dimension."""
    if not isinstance(results[0], RecordedStep):
        return tree.pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)

    def pullback(lam: Tensor) -> StepGradient:
        steps = [step.pullback(own) for step, own in zip(results, lam, strict=True)]
        fields = zip(*(step[:4] for step in steps), strict=True)  # without the end, which is known
        return StepGradient(*map(_together, fields))

    return RecordedStep(torch.stack([step.end for step in results]), pullback)
