"""One meta-update of every method, measured in a process of its own on one thread.

In this order:

1. the warm-up, with one inner step, which loads libraries and compiles kernels;
2. the first run, under the memory limit, during which the growth of resident memory is read;
3. timed runs, as many as the time allows (the first run counts if it has taken too long);
4. one more run, not timed, during which allocations are recorded (`benchmarks.harness.costs`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks import methods
from benchmarks.comparison import cosine, of_order_four
from benchmarks.cost import peers
from benchmarks.harness import costs, processes
from benchmarks.harness.costs import once
from benchmarks.harness.registry import Preset
from benchmarks.problems import functions, models
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task, move
from odeopt.tools import tree

ALL = None
"""In place of the names of lines: all of them."""


@dataclass(frozen=True)
class Check:
    """The sizes of A-MAML against `higher`."""

    steps: int  # inner steps
    states: int  # states that A-MAML keeps
    compile: str | None  # how A-MAML's kernels are run
    reference_steps: int  # RK4 steps of the reference
    repeats: int  # timed runs of each


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    steps: tuple[int, ...]  # numbers of inner steps
    lines: tuple[str, ...] | None  # names of the lines that are measured, or `ALL`
    tasks: int  # tasks of the meta-update
    shots: int  # training points of a task, and as many for validation
    repeats: int  # timed runs of a cell, fewer where they take long
    memory_gib: float  # memory that one meta-update may need
    seconds: float  # time that one cell may take
    check: Check  # the sizes of the comparison with `higher`
    state_mib: tuple[float, ...]  # sizes of states in the solves whose resident memory is looked at
    state_steps: int  # their steps


PAPER_LINES = (
    "a-maml", "a-maml compiled", "a-maml-50", "maml", "maml compiled", "maml-1", "fomaml",
    "reptile", "imaml-gd", "higher", "torchopt",
)  # fmt: skip

SIZES = {
    Preset.SMOKE: Sizes(
        (1, 4), ("higher",), 2, 5, 1, 16.0, 60.0, Check(8, 4, None, 16, 1), (1.0,), 12
    ),
    Preset.QUICK: Sizes(
        (10, 100), PAPER_LINES, 5, 100, 3, 16.0, 60.0, Check(100, 50, "inductor", 128, 3),
        (1.0, 16.0), 30,
    ),
    Preset.PAPER: Sizes(
        (1, 10, 20, 50, 100, 200, 500, 1000, 2000), ALL, 5, 100, 5, 16.0, 200.0,
        Check(500, 50, "inductor", 512, 5), (0.25, 1.0, 4.0, 16.0), 100,
    ),
}  # fmt: skip


LR = 0.01
PROBLEM = Problem(functions.MODEL, models.half_mean_square)
STEPLESS = ("maml-1", "imaml-hf")
"""Methods whose inner loop does not depend on the number of gradient steps."""

PEERS = {"higher": peers.by_higher, "torchopt": peers.by_torchopt}
FEW = 50


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

    @property
    def count(self) -> int:
        """The number of tasks."""
        return self.tasks.train.x.shape[0]


class Update(NamedTuple):
    """One meta-update, ready to be run."""

    run: Callable[[], Tensor]  # makes the meta-gradient, flat
    # the same with a single inner step; it compiles the kernels of `run`, too
    warm_up: Callable[[], object]
    together: int  # how many tasks are in memory at one time


def lines() -> tuple[Line, ...]:
    """All lines, those of the paper's methods first."""
    few, compiled = f"{FEW} states", "inductor"
    chosen: list[Line] = []
    for name in (*methods.PAPER, *methods.OTHERS):
        label = methods.LABELS[name]
        chosen.append(Line(name, label, name))
        if name == "a-maml":
            chosen += [
                Line("a-maml compiled", f"{label}, compiled", name, None, compiled),
                Line("a-maml-50", f"{label}, {few}", name, FEW),
                Line("a-maml-50 compiled", f"{label}, {few}, compiled", name, FEW, compiled),
            ]
        if name == "maml":
            chosen.append(Line("maml compiled", f"{label}, compiled", name, None, compiled))
    chosen += [Line("higher", "higher (MAML)", "higher"),
               Line("torchopt", "TorchOpt (MAML)", "torchopt")]  # fmt: skip
    return tuple(chosen)


def inputs(
    tasks: int, shots: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Inputs:
    """The first tasks of the protocol "code" and a random initialisation."""
    drawn = functions.COSMIXTURE.tasks(range(tasks), "code", shots)
    return move(Inputs(functions.MODEL.init(0), drawn), device, dtype)


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
    method = _method(line, steps)
    short = _method(line, 1)
    if isinstance(method, odeopt.InnerLoop):  # the same kernels: they are compiled only once
        grid = odeopt.TimeGrid.from_lr(method.grid.dt[:1].mean().item(), 1)
        short = odeopt.InnerLoop(method.opt, method.outer_loss, grid)
    return Update(_call(method, own), _call(short, own), own.count)


def _method(line: Line, steps: int) -> odeopt.Method:
    states = steps if line.states is None else min(line.states, steps)
    inner = methods.Inner(LR, steps, states, line.compile)
    return methods.build(line.method, PROBLEM, inner)


def _call(method: odeopt.Method, own: Inputs) -> Callable[[], Tensor]:
    run = methods.gradient_of(method, own.params, own.tasks)
    return lambda: tree.flat(run().grads.params)


WANTED = {"times_as_fast": 5.0, "share_of_memory": 0.1, "cosine": 0.999}


def measure(line: str, steps: int, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a line.

    Returns:
        outcome: "" where there are numbers, else why there are none; the numbers are seconds,
        runs, live_bytes, resident_bytes (None on CUDA), together and warm_up_seconds.
    """
    where = torch.device(device)

    def numbers() -> dict[str, Any]:
        own = inputs(sizes.tasks, sizes.shots, where)
        update = make_update(next(one for one in lines() if one.name == line), steps, own)
        begin = perf_counter()
        update.warm_up()
        warm_up = perf_counter() - begin
        gc.collect()
        peak = costs.ResidentPeak()
        with costs.at_most(int(sizes.memory_gib * costs.GIB), where):
            first = once(update.run, where)
            resident = peak.bytes() if where.type == "cpu" else None
            runs: list[float] = []
            while len(runs) < sizes.repeats and first + sum(runs) + first < sizes.seconds:
                runs.append(once(update.run, where))
        runs = runs or [first]
        return {
            "warm_up_seconds": warm_up,
            "together": update.together,
            "seconds": median(runs),
            "runs": len(runs),
            "resident_bytes": resident,
            "live_bytes": costs.peak_live_bytes(update.run, where),
        }

    return _guarded(numbers, sizes)


def compare(sizes: Sizes, device: str) -> dict[str, Any]:
    """A-MAML with few kept states against exact MAML by `higher`, both in one process and run.

    Returns:
        For "a-maml" and "higher": seconds, live_bytes, live_bytes_per_task and the cosine to the
        gradient of the flow; the reference's own error, and the fields of `WANTED`.
    """
    where, check = torch.device(device), sizes.check

    def numbers() -> dict[str, Any]:
        own = inputs(sizes.tasks, sizes.shots, where)
        entries = Line("", "", "a-maml", check.states, check.compile), Line("", "", "higher")
        updates = {line.method: make_update(line, check.steps, own) for line in entries}
        gradients = {name: one.run() for name, one in updates.items()}  # compiles, too
        seconds: dict[str, list[float]] = {name: [] for name in updates}
        for _ in range(check.repeats):
            for name, one in updates.items():
                seconds[name].append(once(one.run, where))
        target, error = reference(own, check.steps * LR, check.reference_steps)
        cell: dict[str, Any] = {}
        for name, one in updates.items():
            live = costs.peak_live_bytes(one.run, where)
            cell[name] = {
                "seconds": median(seconds[name]),
                "live_bytes": live,
                "live_bytes_per_task": live / one.together,
                "cosine": cosine(gradients[name].double(), target),
            }
        ours, theirs = cell["a-maml"], cell["higher"]
        return {
            **cell,
            "reference_error": error,
            "times_as_fast": theirs["seconds"] / ours["seconds"],
            "share_of_memory": ours["live_bytes_per_task"] / theirs["live_bytes_per_task"],
            "share_of_whole_memory": ours["live_bytes"] / theirs["live_bytes"],
            "cosine": ours["cosine"],
        }

    return _guarded(numbers, sizes)


def _guarded(numbers: Callable[[], dict[str, Any]], sizes: Sizes) -> dict[str, Any]:
    try:
        return processes.guarded(numbers, sizes.memory_gib)
    except odeopt.OdeoptError as error:
        return {"outcome": type(error).__name__, "message": str(error)}


def reference(own: Inputs, t1: float, steps: int) -> tuple[Tensor, float]:
    """The flow's meta-gradient in float64 by RK4 and its exact adjoint, and its own error."""
    params, tasks = move(own, own.tasks.train.x.device, torch.float64)
    flow = odeopt.ODEOptimizer(odeopt.GradientFlow(PROBLEM.loss), odeopt.RK4())

    def gradient(count: int) -> Tensor:
        method = odeopt.InnerLoop(flow, PROBLEM.loss, odeopt.TimeGrid.uniform(t1, count))
        return tree.flat(method(params, (tasks.train, tasks.validation)).grads.params)

    return of_order_four(gradient, steps)
