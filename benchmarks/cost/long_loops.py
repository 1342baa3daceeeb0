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
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import odeopt
from benchmarks.cost import peers
from benchmarks.cost.peers import PEERS
from benchmarks.harness import costs, markdown, outline, processes
from benchmarks.harness.costs import MIB, LivePeak
from benchmarks.harness.outline import Cell, Run
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import classification, models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, move
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


class Loop(NamedTuple):
    """A training: where it begins, its minibatches, and the validation examples."""

    point: Point  # its size
    params: Parameters  # in float32
    stream: Callable[[int], Batch]  # minibatches of digits
    validation: Batch  # for the outer loss

    @property
    def loss(self) -> Callable[[Parameters, Batch], Tensor]:
        """The mean over a batch, inside and outside."""
        return classification.mean_loss(model(self.point.parameters))

    def grid(self, lr: float = LR) -> odeopt.TimeGrid:
        """All steps."""
        return odeopt.TimeGrid.from_lr(lr, self.point.steps)


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
        opt.solve(loop.params, odeopt.Stream(loop.stream), loop.grid())

    return run


def optimizer(loop: Loop, compile: str) -> odeopt.ODEOptimizer:
    """The choices: SGD with momentum, Binomial, and how kernels are run."""
    field, checkpoints = odeopt.SGD(loop.loss, momentum=MOMENTUM), odeopt.Binomial(loop.point.slots)
    return odeopt.ODEOptimizer(field, checkpoints=checkpoints, compile=compile)


def gradient(loop: Loop, opt: odeopt.ODEOptimizer, lr: float) -> Callable[[], odeopt.Result]:
    """The gradient of the validation loss w.r.t. the initialisation (and all learning rates)."""
    call = opt.value_and_grad(loop.loss)
    return lambda: call(loop.params, odeopt.Stream(loop.stream), loop.grid(lr), loop.validation)


def ours(loop: Loop, opt: odeopt.ODEOptimizer) -> Callable[[], tuple[Tensor, odeopt.Stats]]:
    """The same through SGD, w.r.t. the initialisation in one vector, and what it cost."""
    call = gradient(loop, opt, LR)

    def run() -> tuple[Tensor, odeopt.Stats]:
        result = call()
        return tree.flat(result.grads.params), result.stats

    return run


def by_peer(line: str, loop: Loop) -> Callable[[], tuple[Tensor, None]]:
    """The same gradient by another package, which unrolls."""

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return models.cross_entropy(network(batch.x), batch.y)

    run = PEERS[line](
        peers.module(loop.params), loss, [(loop.stream, loop.validation)], loop.point.steps,
        lr=LR, momentum=MOMENTUM,
    )  # fmt: skip
    return lambda: (run(), None)


def measure(line: str, point: Point, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a package: `outcome` "" and numbers, or why there are none."""
    where = torch.device(device)

    def numbers() -> dict[str, Any]:
        loop = make(point, where)
        runs = runnables(line, loop, sizes.compile)
        counts: list[odeopt.Stats | None] = []
        timed = runs | {"meta": lambda: counts.append(runs["meta"]()[1])}
        with costs.at_most(int(sizes.memory_gib * costs.GIB), where):
            seconds = costs.in_turn(timed, sizes.repeats, where, sizes.seconds)
        stats = counts[-1]
        cell = {f"{name}_seconds": median(values) for name, values in seconds.items()}
        for name in seconds.keys() - {"plain"}:
            pairs = zip(seconds[name], seconds["plain"], strict=True)
            cell[f"{name}_ratio"] = median(own / plain for own, plain in pairs)
        for name in runs:  # in runs of their own
            recorder = LivePeak()
            ticking = loop._replace(stream=recorder.ticking(loop.stream))
            run = runnables(line, ticking, sizes.compile)[name]
            cell[f"{name}_bytes"] = costs.peak_live_bytes(run, where, recorder)
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


def measure_kernels(sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures of a solve and its kernels."""
    where, point = torch.device(device), sizes.itself

    def numbers() -> dict[str, Any]:
        loop = make(point, where)
        checkpoints = odeopt.Binomial(point.slots)
        opt = odeopt.ODEOptimizer(
            odeopt.Adam(loop.loss), checkpoints=checkpoints, compile=sizes.compile
        )
        gradient(loop._replace(point=point._replace(steps=WARM_UP)), opt, ADAM_LR)()
        bound = point.steps + optimal_replays(point.steps, point.slots)
        counts: list[odeopt.Stats] = []
        runs = {
            "solve": lambda: counts.append(gradient(loop, opt, ADAM_LR)().stats),
            "kernels": kernels(opt, loop, bound, point.steps),
        }
        seconds = costs.in_turn(runs, min(sizes.repeats, 3), where)
        pairs = zip(seconds["solve"], seconds["kernels"], strict=True)
        return {
            "seconds": median(seconds["solve"]),
            "kernel_seconds": median(seconds["kernels"]),
            "ratio": median(own / bare for own, bare in pairs),
            "advances": counts[-1].steps + counts[-1].replayed_steps,
            "bound": bound,
            "stored_states": counts[-1].stored_states,
        }

    return processes.guarded(numbers, sizes.memory_gib)


@torch.no_grad()
def kernels(opt: odeopt.ODEOptimizer, loop: Loop, advances: int, pulls: int) -> Callable[[], None]:
    """The optimiser's own compiled kernels, called so many times on the states of the training.

    After the end of the training the steps begin again; pullbacks are at the last state.
    """
    choices = opt.value_and_grad(lambda params, batch: 0.0).choices
    begin = Beginning(opt.field, loop.params, None, None)
    problem = begin.problem(odeopt.Stream(loop.stream), loop.grid(ADAM_LR), False)
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


NAME = "cost --only long-loops"
REVISION = 3
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

START_UP, SLACK = 60.0, 30.0
"""Seconds to start, and how many times as long as timed runs all runs of a cell may take."""

ITSELF = "kernels"
"""The cell in which a solve is compared with its own kernels."""

MARGIN = 1.3
"""How many times as long as its kernels a solve may take."""

LINES = {"longer": "steps", "larger": "parameters"}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(settings, NAME, REVISION, sizes, cells(settings, sizes))
    sections = [_head(sizes)]
    for name, varied in LINES.items():
        points = getattr(sizes, name)
        sections += [_table(done, points, varied), _plot(settings, done, points, varied)]
    lacking = [f"- {label}: not installed" for line, label in LABELS.items() if not installed(line)]
    sections += [_itself(done, sizes), outline.without_numbers(done.cells, lacking)]
    outline.write(settings, "A meta-gradient in plain trainings", done, sections)


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per package and point; a point of both lines is measured once."""
    device = str(settings.device)
    child = partial(processes.run, limit=START_UP + SLACK * sizes.seconds)
    chosen: dict[str, Cell] = {}
    for line in filter(installed, LABELS):
        for points in (sizes.longer, sizes.larger):
            smaller: dict[str, str] = {}
            for point in points:
                own = key(line, point)
                compute = partial(child, measure, line, point, sizes, device)
                chosen.setdefault(own, Cell(own, compute, dict(smaller)))
                smaller[own] = own
    alone = partial(child, measure_kernels, sizes, device)
    return [*chosen.values(), Cell(key(ITSELF, sizes.itself), alone)]


def key(line: str, point: Point) -> str:
    """The key of a cell."""
    return f"{line} parameters={point.parameters} steps={point.steps} slots={point.slots}"


def _itself(run: Run, sizes: Sizes) -> str:
    cell, point = run.cells[key(ITSELF, sizes.itself)], sizes.itself
    head = f"## A solve against its own kernels: {point.steps:,} steps of Adam, {point.slots} slots"
    if cell["outcome"]:
        return f"{head}\n\n{cell['outcome']}"
    met = "met" if cell["ratio"] <= MARGIN and cell["advances"] == cell["bound"] else "not met"
    return f"""{head}

The gradient w.r.t. the initialisation and all learning rates made {cell["advances"]:,} steps, the
first sweep included, in {cell["seconds"]:.1f} s. The least is {cell["bound"]:,}: Revolve's number,
{cell["bound"] - 1:,}, and the last step of the first sweep, which Revolve leaves to the reversal,
but whose end the outer loss needs. A loop that only calls the same kernels
(`compile={sizes.compile!r}`) as often took
{cell["kernel_seconds"]:.1f} s: the solve takes **{cell["ratio"]:.2f} times** as long. At most
{MARGIN:g} times, with exactly the least number: {met}."""


def _table(run: Run, points: tuple[Point, ...], varied: str) -> str:
    rows: list[list[markdown.Entry]] = []
    for point in points:
        size = f"{point.parameters:,}, {point.steps:,}, {min(point.slots, point.steps)}"
        ours = run.cells[key(OURS, point)]
        rows.append([size, *([ours["outcome"]] * 5 if ours["outcome"] else _counted(ours))])
        for line in PEERS:
            cell = run.cells.get(key(line, point), {"outcome": "not installed"})
            rows[-1].append(
                cell["outcome"] or f"{cell['meta_ratio']:.1f}, {cell['meta_bytes'] / MIB:.2f}"
            )
    headers = [
        "parameters, steps, kept states", "seconds: over plain", "over own forward sweep",
        "peak MiB", "of plain", "replayed / Revolve's bound",
        *(f"{LABELS[line]}: times plain, peak MiB" for line in PEERS),
    ]  # fmt: skip
    return f"## More and more {varied}\n\n{markdown.table(headers, rows)}"


def _counted(cell: dict[str, Any]) -> list[str]:
    replays, bound = cell["replayed"], cell["bound"]
    share = f"{replays / bound:.3f} ({replays:,})" if bound else f"none ({replays})"
    return [
        f"{cell['meta_ratio']:.1f}", f"{cell['meta_ratio'] / cell['forward_ratio']:.1f}",
        f"{cell['meta_bytes'] / MIB:.2f}", f"{cell['plain_bytes'] / MIB:.2f}", share,
    ]  # fmt: skip


def _plot(settings: Settings, run: Run, points: tuple[Point, ...], varied: str) -> str:
    parts: list[str] = []
    for what, label in (("ratio", "seconds over plain training"), ("bytes", "peak bytes")):
        series = [_series(run, line, points, varied, f"meta_{what}") for line in LABELS]
        if what == "bytes":
            plain = _series(run, OURS, points, varied, "plain_bytes")
            series.append(Series("plain training", plain.x, plain.y, "--"))
        name = f"{varied}-{what}.png"
        labels = Labels(f"the gradient through training: more {varied}", varied, label)
        loglog(settings.store.directory / name, labels, [line for line in series if line.x])
        parts.append(f"![{label}]({name})")
    return "\n".join(parts)


def _series(run: Run, line: str, points: tuple[Point, ...], varied: str, field: str) -> Series:
    cells = {point: run.cells.get(key(line, point), {}) for point in points}
    known = {getattr(point, varied): cell[field] for point, cell in cells.items() if field in cell}
    return Series(LABELS[line], list(known), list(known.values()))


def _head(sizes: Sizes) -> str:
    return f"""The gradient of a validation loss through a training of digits w.r.t. its
initialisation and all learning rates (odeopt) or its initialisation (the others): a perceptron with
one hidden layer (tanh) as wide as the number of parameters asks for, float32, minibatches of
{BATCH}, SGD with learning rate {LR:g} and momentum {MOMENTUM:g}.
odeopt runs kernels with `compile={sizes.compile!r}` and keeps states by `Binomial`; higher and
TorchOpt unroll.

Every cell is a process of its own on one thread. The gradient and the same training written plainly
with `torch.optim.SGD` are run in turn, up to {sizes.repeats} times; given is the median of the
ratios. "Over own forward sweep" is the ratio to odeopt's own training without a gradient. Peaks are
those of live tensors above those before the call, recorded in runs of their own; the kept states
are in them. Every process may take {sizes.memory_gib:g} GiB beyond what it has after a short first
run ("did not fit" where that is not enough)."""
