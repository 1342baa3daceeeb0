"""A meta-gradient in plain trainings, for long loops and for many parameters.

Each cell is a process of its own on one thread. A short run first, which loads libraries and
records kernels; then, under the memory limit, the meta-gradient and the plain training in turn, as
often as the time allows; then each once more while allocations are recorded.

In one of them a long solve is set against its own kernels: the gradient through a training by Adam
and a loop that does nothing but call the same compiled kernels as often (each step that is made or
made again, and each pullback) are timed in turn.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import odeopt
from benchmarks.cost import peers
from benchmarks.harness import costs, processes
from benchmarks.harness.costs import LivePeak, once
from benchmarks.harness.registry import Preset
from benchmarks.problems import classification, models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, move
from odeopt import Stats
from odeopt.adjoint.base import Interval, LocalAdjoint
from odeopt.checkpoint.binomial import optimal_replays
from odeopt.engine.run import make_kernels
from odeopt.gradient.value_and_grad import Beginning
from odeopt.tools import tree


class Point(NamedTuple):
    """One inner loop."""

    parameters: int  # about how many
    steps: int  # of the loop
    slots: int  # kept states, by Binomial


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    longer: tuple[Point, ...]  # points with more and more steps
    larger: tuple[Point, ...]  # points with more and more parameters
    repeats: int  # timed runs of a cell, fewer where they take long
    memory_gib: float  # memory that one meta-gradient may need
    seconds: float  # time that the timed runs of one cell may take; each is run once at least
    itself: Point  # the training by Adam whose gradient is compared with its own kernels
    compile: str  # how kernels are run


FEW = 1000
SLOTS = 50


def _longer(*steps: int) -> tuple[Point, ...]:
    return tuple(Point(FEW, count, SLOTS) for count in steps)


def _larger(steps: int, slots: int, *parameters: int) -> tuple[Point, ...]:
    return tuple(Point(count, steps, slots) for count in parameters)


SIZES = {
    Preset.SMOKE: Sizes(
        _longer(60), _longer(60), 1, 1.0, 10.0, Point(FEW, 60, 5), "trace"
    ),
    Preset.QUICK: Sizes(
        _longer(10, 300, 2000), _larger(300, SLOTS, FEW, 10_000, 100_000), 3, 0.2, 20.0,
        Point(FEW, 2000, 20), "inductor",
    ),
    Preset.PAPER: Sizes(
        _longer(10, 100, 1000, 10_000, 100_000),
        _larger(1000, 20, FEW, 10_000, 100_000, 1_000_000, 10_000_000),
        5, 4.0, 120.0, Point(FEW, 100_000, 100), "inductor",
    ),
}  # fmt: skip


LR, MOMENTUM, BATCH = 0.05, 0.9, 32
ADAM_LR = 1e-3
"""Of the training whose gradient is compared with its own kernels."""

WARM_UP = 3
"""Steps of the short run."""

OURS = "odeopt"
LABELS = {OURS: "odeopt", "higher": "higher", "torchopt": "TorchOpt"}

Meta = tuple[Tensor, odeopt.Stats | None]


class Loop(NamedTuple):
    """A training: where it begins, its minibatches, and the validation examples."""

    point: Point  # its size
    params: Parameters  # in float32
    stream: Callable[[int], Batch]  # minibatches of digits
    validation: Batch  # for the outer loss


def installed(line: str) -> bool:
    """Whether a line's package is there."""
    return find_spec(line) is not None


def make(point: Point, device: torch.device) -> Loop:
    """The training of a perceptron of about so many parameters on digits."""
    inputs = model(point.parameters).init(0), classification.split_digits(1000, 200, 0)
    params, split = move(inputs, device, torch.float32)
    return Loop(point, params, odeopt.Stream.minibatches(split.train, BATCH, 0), split.validation)


def model(parameters: int) -> models.Model:
    """64 inputs, ten outputs, and a hidden layer as wide as it takes: 75 parameters a unit."""
    return models.mlp([64, max(1, round((parameters - 10) / 75)), 10])


def plain(loop: Loop) -> Callable[[], None]:
    """The training by `torch.optim.SGD`, as everybody writes it."""

    def run() -> None:
        network = peers.module(loop.params)
        sgd = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        for k in range(loop.point.steps):
            batch = loop.stream(k)
            sgd.zero_grad()
            models.cross_entropy(network(batch.x), batch.y).backward()
            sgd.step()

    return run


def forward(loop: Loop, opt: odeopt.ODEOptimizer) -> Callable[[], None]:
    """The training by odeopt, without a gradient."""

    @torch.no_grad()
    def run() -> None:
        opt.solve(loop.params, odeopt.Stream(loop.stream), _grid(loop))

    return run


def optimizer(loop: Loop, compile: str) -> odeopt.ODEOptimizer:
    """The choices: SGD with momentum, Binomial, and how kernels are run."""
    mean = classification.mean_loss(model(loop.point.parameters))
    return odeopt.ODEOptimizer(
        odeopt.SGD(mean, momentum=MOMENTUM),
        checkpoints=odeopt.Binomial(loop.point.slots), compile=compile,
    )  # fmt: skip


def ours(loop: Loop, opt: odeopt.ODEOptimizer) -> Callable[[], Meta]:
    """The gradient of the validation loss w.r.t. the initialisation (and all learning rates)."""
    call = opt.value_and_grad(classification.mean_loss(model(loop.point.parameters)))

    def run() -> Meta:
        result = call(loop.params, odeopt.Stream(loop.stream), _grid(loop), loop.validation)
        return tree.flat(result.grads.params), result.stats

    return run


def by_peer(line: str, loop: Loop) -> Callable[[], Meta]:
    """The same gradient by another package, which unrolls."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return models.cross_entropy(network(batch.x), batch.y)

    run = PEERS[line](
        peers.module(loop.params), loss, [(loop.stream, loop.validation)], loop.point.steps,
        lr=LR, momentum=MOMENTUM,
    )  # fmt: skip
    return lambda: (run(), None)


PEERS = {"higher": peers.by_higher, "torchopt": peers.by_torchopt}


def _grid(loop: Loop) -> odeopt.TimeGrid:
    return odeopt.TimeGrid.from_lr(LR, loop.point.steps)


def measure(line: str, point: Point, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a package: `outcome` "" and numbers, or why there are none."""
    where = torch.device(device)

    def numbers() -> dict[str, Any]:
        loop = make(point, where)
        runs = runnables(line, loop, sizes.compile)
        with costs.at_most(int(sizes.memory_gib * costs.GIB), where):
            seconds, stats = _timed(runs, sizes, where)
        cell = {f"{name}_seconds": median(values) for name, values in seconds.items()}
        for name in seconds.keys() - {"plain"}:
            pairs = zip(seconds[name], seconds["plain"], strict=True)
            cell[f"{name}_ratio"] = median(own / plain for own, plain in pairs)
        cell |= {f"{name}_bytes": _peak(name, line, loop, sizes.compile, where) for name in runs}
        if stats is not None:
            cell["replayed"], cell["kept_bytes"] = stats.replayed_steps, stats.stored_bytes
            cell["bound"] = optimal_replays(point.steps, point.slots)
        return {**cell, "parameters": models.count(loop.params), "runs": len(seconds["meta"])}

    return processes.guarded(numbers, sizes.memory_gib)


def runnables(line: str, loop: Loop, compile: str) -> dict[str, Callable[[], Any]]:
    """What is timed, after a short run of the same: the gradient and plain training."""
    runs: dict[str, Callable[[], Any]] = {}
    opt = optimizer(loop, compile)
    for point in (loop.point._replace(steps=WARM_UP), loop.point):
        sized = loop._replace(point=point)
        runs = {"plain": plain(sized)}
        if line == OURS:
            runs |= {"forward": forward(sized, opt), "meta": ours(sized, opt)}
        else:
            runs["meta"] = by_peer(line, sized)
        if point.steps == WARM_UP:
            for run in runs.values():
                run()
            gc.collect()
    return runs


def _timed(
    runs: dict[str, Callable[[], Any]], sizes: Sizes, device: torch.device
) -> tuple[dict[str, list[float]], Stats | None]:
    """Seconds of each, in turn, and the counts of the gradient; at least once."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    stats: Stats | None = None

    def differentiate() -> None:
        nonlocal stats
        _, stats = runs["meta"]()

    timed = runs | {"meta": differentiate}
    turn = spent = 0.0
    while spent == 0 or (len(seconds["meta"]) < sizes.repeats and spent + turn < sizes.seconds):
        for name, run in timed.items():
            seconds[name].append(once(run, device))
        turn = sum(values[-1] for values in seconds.values())
        spent += turn
    return seconds, stats


def _peak(name: str, line: str, loop: Loop, compile: str, device: torch.device) -> int:
    """The peak of live tensors above those before, in a run of its own."""
    if device.type == "cuda":
        return costs.peak_live_bytes(runnables(line, loop, compile)[name], device)
    peak = LivePeak()
    stream = loop.stream

    def ticking(k: int) -> Any:
        if k > WARM_UP:
            peak.tick()
        return stream(k)

    run = runnables(line, loop._replace(stream=ticking), compile)[name]
    with peak:
        run()
    return peak.bytes


def measure_kernels(sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a solve and its kernels."""
    where, point = torch.device(device), sizes.itself

    def numbers() -> dict[str, Any]:
        loop = make(point, where)
        opt = odeopt.ODEOptimizer(
            odeopt.Adam(classification.mean_loss(model(point.parameters))),
            checkpoints=odeopt.Binomial(point.slots),
            compile=sizes.compile,
        )
        gradient(opt, loop._replace(point=point._replace(steps=WARM_UP)))()
        bound = point.steps + optimal_replays(point.steps, point.slots)
        alone = kernels(opt, loop, bound, point.steps)
        stats: list[odeopt.Stats] = []
        pairs = [
            (once(lambda: stats.append(gradient(opt, loop)()), where), once(alone, where))
            for _ in range(min(sizes.repeats, 3))
        ]
        return {
            "seconds": median(own for own, _ in pairs),
            "kernel_seconds": median(bare for _, bare in pairs),
            "ratio": median(own / bare for own, bare in pairs),
            "advances": stats[-1].steps + stats[-1].replayed_steps,
            "bound": bound,
            "stored_states": stats[-1].stored_states,
        }

    return processes.guarded(numbers, sizes.memory_gib)


def gradient(opt: odeopt.ODEOptimizer, loop: Loop) -> Callable[[], odeopt.Stats]:
    """The gradient of the validation loss through the training."""
    call = opt.value_and_grad(classification.mean_loss(model(loop.point.parameters)))
    grid = odeopt.TimeGrid.from_lr(ADAM_LR, loop.point.steps)
    stream = odeopt.Stream(loop.stream)
    return lambda: call(loop.params, stream, grid, loop.validation).stats


@torch.no_grad()
def kernels(opt: odeopt.ODEOptimizer, loop: Loop, advances: int, pulls: int) -> Callable[[], None]:
    """The optimiser's own compiled kernels, called so many times on the states of the training.

    After the end of the training the steps begin again; pullbacks are at the last state.
    """
    choices = opt.value_and_grad(lambda params, batch: 0.0).choices
    grid = odeopt.TimeGrid.from_lr(ADAM_LR, loop.point.steps)
    begin = Beginning(opt.field, loop.params, None, None)
    problem = begin.problem(odeopt.Stream(loop.stream), grid, False)
    bound = make_kernels(choices, problem, odeopt.Stats())
    adjoint = choices.adjoint
    assert isinstance(adjoint, LocalAdjoint), "the exact one"
    step, pull, y0 = bound.step(), bound.pull(adjoint), problem.y0
    times = torch.arange(loop.point.steps, dtype=y0.dtype, device=y0.device).unbind()
    lr = torch.tensor(ADAM_LR, dtype=y0.dtype, device=y0.device)

    @torch.no_grad()
    def run() -> None:
        y = y0
        for index in range(advances):
            k = index % loop.point.steps
            y = step(k, times[k], lr, y0 if k == 0 else y)
        lam = torch.ones_like(y)
        for k in reversed(range(pulls)):
            lam = pull(k, Interval(times[k], lr, y, y), lam).lam

    return run
