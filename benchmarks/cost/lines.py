"""The lines of the figures: one meta-update by every method, and by other packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks import methods
from benchmarks.cost import peers
from benchmarks.cost.peers import PEERS
from benchmarks.problems import functions, models
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task, move
from odeopt.tools import tree

LR = 0.01
PROBLEM = Problem(functions.MODEL, models.half_mean_square)
STEPLESS = ("maml-1", "imaml-hf")
"""Methods whose inner loop does not depend on the number of gradient steps."""

FEW = 50
"""States that A-MAML keeps at most in some lines."""


@dataclass(frozen=True)
class Line:
    """One line of the figures."""

    name: str  # for keys, and to find it by
    label: str  # for reports
    method: str  # a name of `benchmarks.methods` or of `PEERS`
    states: int | None = None  # how many states A-MAML keeps at most; all of them where None
    compile: str | None = None  # how kernels are run

    @property
    def is_peer(self) -> bool:
        """Whether another package computes it."""
        return self.method in PEERS

    @property
    def varies(self) -> bool:
        """Whether it depends on the number of steps."""
        return self.method not in STEPLESS

    @property
    def installed(self) -> bool:
        """Whether the package that computes it is there."""
        return not self.is_peer or find_spec(self.method) is not None


class Inputs(NamedTuple):
    """Tasks and an initialisation, in float32, on a device."""

    params: Parameters
    tasks: Task


class Update(NamedTuple):
    """One meta-update, ready to be run."""

    run: Callable[[], Tensor]  # makes the meta-gradient, flat
    # the same with a single inner step; it compiles the kernels of `run`, too
    warm_up: Callable[[], object]
    together: int  # how many tasks are in memory at one time


def _lines() -> Iterator[Line]:
    """All lines, those of the paper's methods first."""
    few, compiled = f"{FEW} states", "inductor"
    for name in (*methods.PAPER, *methods.OTHERS):
        label = methods.LABELS[name]
        yield Line(name, label, name)
        if name in ("a-maml", "maml"):
            yield Line(f"{name} compiled", f"{label}, compiled", name, None, compiled)
        if name == "a-maml":
            yield Line("a-maml-50", f"{label}, {few}", name, FEW)
            yield Line("a-maml-50 compiled", f"{label}, {few}, compiled", name, FEW, compiled)
    yield Line("higher", "higher (MAML)", "higher")
    yield Line("torchopt", "TorchOpt (MAML)", "torchopt")


LINES = {line.name: line for line in _lines()}


def inputs(tasks: int, shots: int, device: torch.device) -> Inputs:
    """The first tasks of the protocol "code" and a random initialisation."""
    drawn = functions.COSMIXTURE.tasks(range(tasks), "code", shots)
    return move(Inputs(functions.MODEL.init(0), drawn), device, torch.float32)


def make_update(line: Line, steps: int, own: Inputs) -> Update:
    """A line's meta-update."""
    if line.is_peer:
        run, warm_up = (
            PEERS[line.method](
                peers.module(own.params), peers.half_mean_square_of, peers.trainings(own.tasks),
                count, lr=LR,
            )
            for count in (steps, 1)
        )  # fmt: skip
        return Update(run, warm_up, 1)
    method, short = (method_of(line, count, PROBLEM) for count in (steps, 1))
    if isinstance(method, odeopt.InnerLoop):  # the same kernels: they are compiled only once
        grid = odeopt.TimeGrid.from_lr(method.grid.dt[:1].mean().item(), 1)
        short = odeopt.InnerLoop(method.opt, method.outer_loss, grid)
    return Update(_call(method, own), _call(short, own), len(own.tasks.train.x))


def method_of(line: Line, steps: int, problem: Problem, **settings: Any) -> odeopt.Method:
    """The method of a line, for gradient descent with so many steps."""
    states = steps if line.states is None else min(line.states, steps)
    inner = methods.Inner(LR, steps, states, line.compile)
    return methods.build(line.method, problem, inner, **settings)


def _call(method: odeopt.Method, own: Inputs) -> Callable[[], Tensor]:
    run = methods.gradient_of(method, own.params, own.tasks)
    return lambda: tree.flat(run().grads.params)
