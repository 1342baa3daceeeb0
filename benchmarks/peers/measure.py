"""One point: every contender in a process of its own, or several in one.

A process of one contender is asked in this order: "first", for a warm-up with one step (which loads
libraries and compiles) and the first run, during which the growth of resident memory is read;
"time", for one more timed run, as often as wanted; "memory", for a run in which allocations are
recorded.

At long horizons two of odeopt's solvers are compared, in one process.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

import odeopt
from benchmarks.comparison import of_order_four
from benchmarks.harness import costs, processes
from benchmarks.harness.costs import once
from benchmarks.peers import contenders, problems
from benchmarks.peers.contenders import CONTENDERS, Limits, Point, by_odeopt
from benchmarks.peers.problems import FLOW, MAP, Outcome, Problem, Runner, Setup
from benchmarks.problems import functions
from benchmarks.problems.tasks import each, move, stack
from odeopt.testing import relative_error

TRACED = 200
"""RK4 steps from which tracing the kernels of the reference pays."""

MOST_STATES = 20_000
"""That the reference keeps."""


Targets = dict[str, Tensor]
"""The gradients that contenders are compared with, in float64: `MAP`'s and `FLOW`'s."""


def errors(targets: Targets, gradient: Tensor) -> dict[str, float]:
    """The relative error to each target."""
    own = gradient.detach().double().cpu()
    return {name: relative_error(own, target) for name, target in targets.items()}


def compute_targets(setup: Setup) -> tuple[Targets, float]:
    """Both targets of a setup in float64, and the error of that of the flow.

    The map's is the hand-written adjoint loop; the flow's is RK4 with its exact adjoint, with the
    error of order 4 that half the steps tell.
    """
    exact = contenders.vmap_adjoint(setup, None)
    steps = 2 * max(1, round(setup.t1 / setup.problem.reference_step / 2))
    run = flow(setup, steps, "trace" if steps >= TRACED else None)
    of_flow, error = of_order_four(run, steps)
    return {MAP: exact.run(exact.steps).gradient.cpu(), FLOW: of_flow.cpu()}, error


def flow(setup: Setup, most: int, compile: str | None) -> Callable[[int], Tensor]:
    """The gradient of the flow by RK4, by the number of steps, which is `most` or less."""
    run = by_odeopt(
        setup.problem, partial(odeopt.TimeGrid.uniform, setup.t1), solver=odeopt.RK4(),
        checkpoints=odeopt.Binomial(min(most, MOST_STATES)), compile=compile,
    )  # fmt: skip
    return lambda steps: run(steps).gradient


def write_targets(point: Point, device: str, path: str) -> dict[str, Any]:
    """Write the targets of a point into a file."""
    targets, own = compute_targets(point.setup(torch.device(device), torch.float64))
    torch.save(targets, path)
    return {"reference_error": own}


FIRST, TIME, MEMORY = "first", "time", "memory"


class Job(NamedTuple):
    """What a process measures."""

    contender: str  # a key of `CONTENDERS`
    point: Point  # at which gradients are computed
    device: str  # where to compute
    targets: str  # the file with the targets
    memory_gib: float  # memory beyond what is in use after the warm-up


class Subject:
    """Answers requests about one contender."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._device = torch.device(job.device)
        self._runner: Runner | None = None

    def answer(self, request: str) -> dict[str, Any]:
        """The numbers with `outcome` "", or `outcome` and `message`."""
        ways = {FIRST: self._first, TIME: self._time, MEMORY: self._memory}
        try:
            return processes.guarded(ways[request], self._job.memory_gib)
        except Exception as error:  # whatever a package does not support
            reason = (str(error).strip().splitlines() or [""])[0]
            return {"outcome": type(error).__name__, "message": reason[:200]}

    def _first(self) -> dict[str, Any]:
        begin = perf_counter()
        setup = self._job.point.setup(self._device)
        self._runner = CONTENDERS[self._job.contender].make(setup, None)
        self._runner.run(1)
        prepared = perf_counter() - begin
        gc.collect()
        outcomes: list[Outcome] = []
        peak = costs.ResidentPeak()
        with costs.at_most(int(self._job.memory_gib * costs.GIB), self._device):
            seconds = once(lambda: outcomes.append(self._run()), self._device)
        resident = peak.bytes() if self._device.type == "cpu" else None
        targets = torch.load(self._job.targets, weights_only=True)
        return {
            "prepare_seconds": prepared, "seconds": seconds, "resident_bytes": resident,
            "errors": errors(targets, outcomes[0].gradient), "steps": self._runner.steps,
            **outcomes[0].counts,
        }  # fmt: skip

    def _time(self) -> dict[str, Any]:
        gc.collect()
        return {"seconds": once(self._run, self._device)}

    def _memory(self) -> dict[str, Any]:
        return {"live_bytes": costs.peak_live_bytes(self._run, self._device)}

    def _run(self) -> Outcome:
        assert self._runner is not None, "it was asked for the first run first"
        return self._runner.run(self._runner.steps)


_subject = cache(Subject)
"""The one of this process."""


def answer(job: Job, request: str) -> dict[str, Any]:
    """The answer to a request about a job, which is the same each time."""
    return _subject(job).answer(request)


def measure_together(
    entries: Sequence[tuple[str, float | None]], point: Point, device: str, rounds: int
) -> dict[str, Any]:
    """Several contenders in one process, in turn.

    Args:
        entries: Keys of `CONTENDERS`, each with its setting or None.
        point: At which gradients are computed.
        device: Where to compute.
        rounds: Timed runs of each.

    Returns:
        For each entry that is installed its seconds, one per round, its errors and counts.
    """
    where = torch.device(device)
    targets, own = compute_targets(point.setup(where, torch.float64))
    setup = point.setup(where)
    cells: list[dict[str, Any]] = []
    ready: list[tuple[dict[str, Any], Runner]] = []
    for name, setting in entries:
        if not CONTENDERS[name].installed:
            continue
        cell: dict[str, Any] = {"contender": name, "setting": setting, "outcome": "", "seconds": []}
        cells.append(cell)
        begin = perf_counter()
        try:
            runner = CONTENDERS[name].make(setup, setting)
            runner.run(1)
            cell["prepare_seconds"] = perf_counter() - begin
            outcome = runner.run(runner.steps)  # not timed
        except Exception as error:  # whatever a package does not support
            cell |= {"outcome": type(error).__name__, "message": str(error)[:200]}
            continue
        cell |= {"errors": errors(targets, outcome.gradient), **outcome.counts}
        ready.append((cell, runner))
    for _ in range(rounds):
        for cell, runner in ready:
            gc.collect()
            seconds = once(lambda own=runner: own.run(own.steps), where)
            cell["seconds"].append(seconds)
    return {"outcome": "", "entries": cells, "reference_error": own}


NOT_INSTALLED = {"outcome": "not installed", "message": "its package is missing"}
CACHE = "TORCHINDUCTOR_CACHE_DIR"

Ask = Callable[[str], dict[str, Any]]
"""Puts a request to a process and waits for the answer."""


def compute(point: Point, limits: Limits, device: str, cache: str) -> dict[str, Any]:
    """Seconds, memory and errors of every contender of a point.

    Compiled kernels are kept in the folder `cache` for later processes.

    Returns:
        "contenders": for each an `outcome`, "" where there are numbers, and these: `seconds`, of
        all rounds, or of the first run where that took too long; and what `Subject` answers.
    """
    with TemporaryDirectory() as folder, ExitStack() as running:
        path = str(Path(folder) / "targets.pt")
        own = processes.run(write_targets, point, device, path, limit=limits.start)
        if own.get("outcome"):
            return {"contenders": dict.fromkeys(point.contenders, own), "reference_error": None}
        cells: dict[str, dict[str, Any]] = {}
        alive: dict[str, Ask] = {}
        for name in point.contenders:
            if not CONTENDERS[name].installed:
                cells[name] = NOT_INSTALLED
                continue
            job = Job(name, point, device, path, limits.memory_gib)
            process = running.enter_context(processes.Child({CACHE: cache}))
            ask = partial(process.ask, answer, job, limit=limits.start)
            cells[name] = ask(FIRST)
            if not cells[name]["outcome"]:
                alive[name] = ask
        _rounds(cells, alive, limits)
        return {"contenders": cells, **own}


def _rounds(cells: dict[str, dict[str, Any]], alive: dict[str, Ask], limits: Limits) -> None:
    first = {name: cells[name]["seconds"] for name in alive}
    seconds: dict[str, list[float]] = {name: [] for name in alive}
    for number in range(1, limits.rounds + 1):
        for name, ask in alive.items():
            if number * first[name] >= limits.seconds:
                continue
            timed = ask(TIME)
            if timed["outcome"]:
                cells[name] |= timed
            else:
                seconds[name].append(timed["seconds"])
    for name, ask in alive.items():
        if not cells[name]["outcome"]:
            cells[name] |= ask(MEMORY)
        cells[name]["seconds"] = seconds[name] or [first[name]]


SEED = 1
LIMIT = 2.6
"""Step length times spectral radius of the coarser reference; RK4 is stable up to 2.785."""

MARGIN = 1.02
"""Steps of gradient descent over the fewest that are stable for the radii that were seen."""

LOOKS, POWERS = 12, 40
"""States at which the spectral radius is estimated, and power iterations for each."""


def long_problem(device: torch.device) -> Problem:
    """One CosMixture task of the paper's text, whose curvature grows tenfold on the way."""
    inputs = stack([functions.COSMIXTURE.task(SEED, "text")]), functions.MODEL.init(SEED)
    tasks, params = move(inputs, device, torch.float64)
    return replace(problems.make("mlp", 1), tasks=tasks, params=params)


def measure_long(
    t1: float, tolerances: Sequence[float], device: str, compile: str | None = "inductor"
) -> dict[str, Any]:
    """The spectral radius, and errors and costs of two solvers up to t1.

    Gradient descent at the edge of stability, and the stabilised solver; errors are to the gradient
    of the flow, evaluations are gradients and Hessian-vector products together. The stabilised
    solver runs without compilation, with which it makes stages again in the backward sweep.
    """
    own = long_problem(torch.device(device))
    rho = radius(own, t1)
    setup = Setup(own, t1, math.ceil(MARGIN * rho * t1 / 2))
    many, fewer = math.ceil(4 / 3 * rho * t1 / LIMIT), math.ceil(rho * t1 / LIMIT)
    fine, coarse = map(flow(setup, many, compile), (many, fewer))
    order_four = (4 / 3) ** 4 - 1
    return {
        "outcome": "", "radius": rho, "stiffness": rho * t1,
        "reference_error": relative_error(coarse, fine) / order_four,
        "descent": _solved(setup, odeopt.Euler(), setup.steps, fine, compile),
        "stabilised": [
            {"rtol": rtol, **_solved(setup, odeopt.StabilizedRK(rtol, rtol * 1e-2), 1, fine, None)}
            for rtol in tolerances
        ],
    }  # fmt: skip


def radius(own: Problem, t1: float) -> float:
    """The largest eigenvalue of the Hessian that is found on the way."""
    train, layout = each(own.tasks)[0].train, own.raveled()[1]
    slope = grad(lambda u: own.loss(layout.unflatten(u), train))
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), odeopt.Adaptive(1e-3, 1e-5))
    times = [0.0, *(t1 * 2.0 ** (look - LOOKS) for look in range(1, LOOKS + 1))]
    grid = odeopt.TimeGrid(torch.tensor(times, dtype=torch.float64), observe=range(LOOKS + 1))
    with torch.no_grad():
        states = opt.solve(own.params, train, grid).observed
    return max(_largest(slope, layout.flatten(state, "a state")) for state in states)


def _largest(slope: Callable[[Tensor], Tensor], y: Tensor) -> float:
    pullback = vjp(slope, y)[1]
    direction, size = torch.ones_like(y) / math.sqrt(len(y)), 0.0
    for _ in range(POWERS):
        image = pullback(direction)[0]
        size = image.norm().item()
        direction = image / size
    return size


def _solved(
    setup: Setup, solver: Any, steps: int, target: Tensor, compile: str | None
) -> dict[str, Any]:
    """Errors and costs, or why there are none."""
    grid = partial(odeopt.TimeGrid.uniform, setup.t1)
    run = by_odeopt(setup.problem, grid, solver=solver, compile=compile)
    outcomes: list[Outcome] = []
    try:
        seconds = once(lambda: outcomes.append(run(steps)), setup.problem.device)
    except odeopt.OdeoptError as error:
        return {"failure": type(error).__name__}
    gradient, stats = outcomes[0]
    assert stats is not None, "odeopt counts"
    return {
        "failure": "", "steps": stats.steps, "seconds": seconds,
        "error": relative_error(gradient, target),
        "evaluations": stats.gradient_evaluations + stats.hvps,
        "stored_states": stats.stored_states,
    }  # fmt: skip
