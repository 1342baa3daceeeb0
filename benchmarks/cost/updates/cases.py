"""The lines of the figures: every method as a function that makes one meta-gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks import methods
from benchmarks.cost.updates import peers
from benchmarks.problems import cosmixture, losses
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Task

LR = 0.01
PROBLEM = methods.Problem(cosmixture.MODEL, losses.half_mean_square)
STEPLESS = ("maml-1", "imaml-hf")
"""Methods whose inner loop does not depend on the number of gradient steps."""

PEERS = {"higher": peers.with_higher, "torchopt": peers.with_torchopt}
FEW = 50


@dataclass(frozen=True)
class Line:
    """One line of the figures.

    Attributes:
        name: For keys, and to find it by.
        label: For reports.
        method: A name of `benchmarks.methods` or of `PEERS`.
        states: How many states A-MAML keeps at most; all of them where None.
        compile: How kernels are run.
    """

    name: str
    label: str
    method: str
    states: int | None = None
    compile: str | None = None

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

    @property
    def count(self) -> int:
        """The number of tasks."""
        return self.tasks.train.x.shape[0]


class Update(NamedTuple):
    """One meta-update, ready to be run.

    Attributes:
        run: Makes the meta-gradient, flat.
        warm_up: The same with a single inner step; it compiles the kernels of `run`, too.
        together: How many tasks are in memory at one time.
    """

    run: Callable[[], Tensor]
    warm_up: Callable[[], object]
    together: int


def lines() -> tuple[Line, ...]:
    """All lines, those of the paper's methods first."""
    found: list[Line] = []
    for name in (*methods.PAPER, *methods.OTHERS):
        label = methods.LABELS[name]
        found.append(Line(name, label, name))
        if name == "a-maml":
            found += [
                Line("a-maml compiled", f"{label}, compiled", name, None, "inductor"),
                Line("a-maml-50", f"{label}, {FEW} states", name, FEW),
                Line("a-maml-50 compiled", f"{label}, {FEW} states, compiled", name, FEW,
                     "inductor"),
            ]  # fmt: skip
        if name == "maml":
            found.append(Line("maml compiled", f"{label}, compiled", name, None, "inductor"))
    found += [Line("higher", "higher (MAML)", "higher"),
              Line("torchopt", "TorchOpt (MAML)", "torchopt")]  # fmt: skip
    return tuple(found)


def inputs(tasks: int, shots: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """The first tasks of the protocol "code" and a random initialisation."""
    params = cosmixture.initial_parameters(0)
    drawn = cosmixture.tasks(range(tasks), "code", shots)
    return Inputs(
        {name: leaf.to(device, dtype) for name, leaf in params.items()}, drawn.to(device, dtype)
    )


def update(line: Line, steps: int, given: Inputs) -> Update:
    """A line's meta-update."""
    if line.is_peer:
        make = PEERS[line.method]
        return Update(make(given.params, given.tasks, LR, steps),
                      make(given.params, given.tasks, LR, 1), 1)  # fmt: skip
    method = _method(line, steps)
    short = _method(line, 1)
    if isinstance(method, odeopt.InnerLoop):  # the same kernels: they are compiled only once
        grid = odeopt.TimeGrid.from_lr(method.grid.dt[:1].mean().item(), 1)
        short = odeopt.InnerLoop(method.opt, method.outer_loss, grid)
    return Update(_call(method, given), _call(short, given), given.count)


def _method(line: Line, steps: int) -> odeopt.Method:
    states = steps if line.states is None else min(line.states, steps)
    inner = methods.Inner(LR, steps, states, line.compile)
    return methods.build(line.method, PROBLEM, inner)


def _call(method: odeopt.Method, given: Inputs) -> Callable[[], Tensor]:
    hparams = method.init_hparams(given.params)
    batch = odeopt.TaskBatch(given.tasks.train, given.tasks.validation)

    def run() -> Tensor:
        return flat(method(given.params, batch, hparams).grads.params)

    return run


def flat(params: Parameters) -> Tensor:
    """All parameters in one vector, in their order."""
    return torch.cat([leaf.flatten() for leaf in params.values()])
