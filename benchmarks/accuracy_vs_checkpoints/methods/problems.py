"""The problems: tasks, a model, its loss and an initialisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch

from benchmarks import methods
from benchmarks.accuracy_vs_checkpoints.methods.sizes import Sizes
from benchmarks.problems import digits, losses, models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Task

WAYS, SHOTS = 5, 10
DIGITS_MODEL = models.mlp([64, 32, WAYS])


class Inputs(NamedTuple):
    """Tasks and an initialisation, in one dtype on one device."""

    problem: methods.Problem
    params: Parameters
    tasks: Task

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same in another dtype."""
        device = self.tasks.train.x.device
        params = {name: leaf.to(dtype) for name, leaf in self.params.items()}
        return Inputs(self.problem, params, self.tasks.to(device, dtype))


@dataclass(frozen=True)
class Source:
    """A problem by name.

    Attributes:
        title: For headings.
        make: `make(sizes, device)`: its tasks and initialisation in float64.
    """

    title: str
    make: Callable[[Sizes, torch.device], Inputs]


def _regression(module: str, sizes: Sizes, device: torch.device) -> Inputs:
    functions: Any = import_module(f"benchmarks.problems.{module}")
    problem = methods.Problem(functions.MODEL, losses.half_mean_square)
    tasks = functions.tasks(range(sizes.tasks), "code", sizes.shots)
    return _inputs(problem, functions.initial_parameters(0), tasks, device)


def _digits(sizes: Sizes, device: torch.device) -> Inputs:
    problem = methods.Problem(DIGITS_MODEL, losses.cross_entropy)
    tasks = digits.flatten(digits.tasks(sizes.tasks, ways=WAYS, shots=SHOTS))
    return _inputs(problem, DIGITS_MODEL.init(0), tasks, device)


def _inputs(
    problem: methods.Problem, params: Parameters, tasks: Task, device: torch.device
) -> Inputs:
    moved = {name: leaf.to(device) for name, leaf in params.items()}
    return Inputs(problem, moved, tasks.to(device, torch.float64))


PROBLEMS = {
    "cosmixture": Source("CosMixture", lambda *given: _regression("cosmixture", *given)),
    "alpine": Source("Alpine", lambda *given: _regression("alpine", *given)),
    "digits": Source(f"digits, {WAYS}-way {SHOTS}-shot", _digits),
}
