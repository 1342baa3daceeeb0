"""The gradient through training by default settings, against other packages."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import odeopt
from benchmarks.cost import peers
from benchmarks.harness import costs, markdown, outline, processes
from benchmarks.harness.markdown import Column
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.plots import Labels, Slope, picture
from benchmarks.harness.registry import Preset, Settings
from benchmarks.peers.criteria import Criterion, times
from benchmarks.problems import models
from benchmarks.problems.tasks import Batch, Task, move
from odeopt.testing import relative_error
from odeopt.tools import tree

REVISION = 1  # raised when what a cell computes changes, so that stored cells are computed anew
MEDIAN, EVERY = 1.0, 1.1  # times the better of the two, in the median cell and in every cell
TIME, MEMORY = "seconds", "live_bytes"
BATCH, INPUTS, CLASSES = 50, 20, 10
WIDTHS = {"1e3": 19, "1e4": 85, "1e5": 300}  # of perceptrons, by about how many parameters
RULES: dict[str, dict[str, float]] = {"SGD": {"lr": 0.05, "momentum": 0.9}, "Adam": {"lr": 0.003}}


def _convolution(inputs: int, outputs: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.Tanh())


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"perceptron-{n}": (lambda w=w: peers.module(models.mlp([INPUTS, w, w, CLASSES]).init(0)),
                           (INPUTS,)) for n, w in WIDTHS.items()},
    "conv-batch-norm": (lambda: nn.Sequential(
        _convolution(1, 8), _convolution(8, 16), nn.Flatten(), nn.Linear(64, CLASSES)), (1, 8, 8)),
    "encoder": (lambda: nn.Sequential(
        nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, bias=False),
        nn.Flatten(), nn.Linear(128, CLASSES)), (8, 16)),
}  # fmt: skip
"""What makes a module, and an input's shape; without biases whose gradients are rounding alone."""


class Point(NamedTuple):
    """One training."""

    model: str  # a key of `MODELS`
    rule: str  # a key of `RULES`
    steps: int  # of the optimiser

    @property
    def key(self) -> str:
        """The key of its cell."""
        return f"{self.model} {self.rule} steps={self.steps}"

    def problem(self, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Task, Point]:
        """The module, and a training and a validation batch whose classes a linear map says."""
        make, shape = MODELS[self.model]
        torch.manual_seed(0)
        network = make().to(torch.float32)  # the same numbers in both precisions
        x = torch.randn(2, BATCH, *shape, dtype=torch.float32)
        y = (x.flatten(2) @ torch.randn(math.prod(shape), CLASSES, dtype=torch.float32)).argmax(-1)
        task = Task(Batch(x[0], y[0]), Batch(x[1], y[1]))
        return network.to(device, dtype), move(task, device, dtype), self


def loss(network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """The inner and the outer one."""
    return models.cross_entropy(network(batch.x), batch.y)


Runner = Callable[[], Tensor]  # computes the gradient, flat


def recorded_loop(network: nn.Module, task: Task, point: Point) -> Runner:
    """The training loop of README's first example."""
    optimizer = getattr(torch.optim, point.rule)(network.parameters(), **RULES[point.rule])

    def run() -> Tensor:
        network.zero_grad()
        with odeopt.RecordedLoop(network, optimizer) as inner:
            for _ in range(point.steps):
                inner.step(loss, task.train)
        inner.backward(loss, task.validation)
        return peers.gradient(network)

    return run


def update_rule(network: nn.Module, task: Task, point: Point) -> Runner:
    """`odeopt.SGD` or `odeopt.Adam` on the module taken apart."""
    problem, options = odeopt.from_module(network, loss), dict(RULES[point.rule])
    grid = odeopt.TimeGrid.from_lr(options.pop("lr"), point.steps)
    rule = getattr(odeopt, point.rule)(problem.loss, buffers=problem.buffers, **options)
    call = odeopt.ODEOptimizer(rule).value_and_grad(problem.evaluate)
    return lambda: tree.flat(call(problem.params, task.train, grid, task.validation).grads.params)


def by_package(name: str, network: nn.Module, task: Task, point: Point) -> Runner:
    """`higher.innerloop_ctx`, or TorchOpt's `MetaSGD` and `MetaAdam`."""
    training = (lambda _: task.train), task.validation
    options: Any = {"rule": point.rule, **RULES[point.rule]}
    return peers.PEERS[name](network, loss, [training], point.steps, **options)


def unrolled(network: nn.Module, task: Task, point: Point, early_eps: bool = False) -> Runner:
    """Autograd through updates by hand; Adam may add eps before correcting the bias, as higher."""
    lr, mu = RULES[point.rule]["lr"], RULES[point.rule].get("momentum", 0.0)

    def sgd(_: int, g: Tensor, b: Tensor | None) -> tuple[Tensor, Any]:
        b = g if b is None else mu * b + g
        return b, b

    def adam(k: int, g: Tensor, moments: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        m, v = moments or (torch.zeros_like(g), torch.zeros_like(g))
        m, v, correction = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g, math.sqrt(1 - 0.999**k)
        root = v.sqrt() / correction + (1e-8 / correction if early_eps else 1e-8)
        return m / (1 - 0.9**k) / root, (m, v)

    direction: Callable[..., tuple[Tensor, Any]] = {"SGD": sgd, "Adam": adam}[point.rule]

    def run() -> Tensor:
        params = start = dict(network.named_parameters())
        buffers = {name: own.clone() for name, own in network.named_buffers()}
        slots = dict[str, Any]()

        def value(batch: Batch) -> Tensor:
            return loss(lambda x: functional_call(network, params | buffers, (x,)), batch)

        for k in range(1, point.steps + 1):
            leaves = list(params.values())
            slopes = torch.autograd.grad(value(task.train), leaves, create_graph=True)
            params = dict(params)
            for name, slope in zip(start, slopes, strict=True):
                step, slots[name] = direction(k, slope, slots.get(name))
                params[name] = params[name] - lr * step
        network.eval()
        grads = torch.autograd.grad(value(task.validation), list(start.values()))
        network.train()
        return torch.cat([leaf.flatten() for leaf in grads])

    return run


LOOP, RULE, HIGHER, TORCHOPT = "RecordedLoop", "ODEOptimizer", "higher", "torchopt"
OURS, RIVALS, UNROLLED = (LOOP, RULE), (HIGHER, TORCHOPT), "unrolled autograd"
CONTENDERS: dict[str, Callable[[nn.Module, Task, Point], Runner]] = {
    LOOP: recorded_loop, RULE: update_rule,
    **{name: partial(by_package, name) for name in RIVALS}, UNROLLED: unrolled,
}  # fmt: skip
AGREED = 1e-3  # beyond this relative error, in double precision, it is another gradient


def measure(point: Point, device: str, rounds: int, seconds: float) -> dict[str, Any]:
    """All contenders of a point, in turn, in so many rounds, of about so many seconds together.

    Of each: errors in both precisions, `seconds` of processor time in each round, `first_seconds`
    of the round before, with what is built once, `live_bytes`, the peak of a run of its own.
    """
    where = torch.device(device)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        double = point.problem(where, torch.float64)
        targets = [unrolled(*double, early_eps)() for early_eps in (False, True)]
        cells, runners = Cells(), dict[str, Runner]()
        for name, make in CONTENDERS.items():
            try:
                target = targets[name == HIGHER]
                cells[name], runners[name] = _start(name, make, point, where, target)
            except Exception as error:  # whatever a package does not support
                cells[name] = {"outcome": type(error).__name__, "message": str(error)[:200]}
        timed = costs.in_turn(runners, rounds, where, seconds, process_time)
        for name, run in runners.items():
            found: list[Tensor] = []
            gc.collect()
            size = costs.peak_live_bytes(lambda own=run, to=found: to.append(own()), where)
            error = relative_error(found[0].double(), targets[name == HIGHER])
            cells[name] |= {TIME: timed[name], MEMORY: [size], "float32": error}
    return {"outcome": "", "contenders": cells}


def _start(
    name: str, make: Callable[..., Runner], point: Point, device: torch.device, target: Tensor
) -> tuple[dict[str, Any], Runner]:
    """The first numbers of a contender, and what runs it."""
    if name in RIVALS:
        import_module(name)  # not a part of its first call
    error = relative_error(make(*point.problem(device, torch.float64))(), target)
    if not error <= AGREED:
        raise ArithmeticError(f"another gradient, off by {error:.1e}")
    given, begin = point.problem(device, torch.float32), process_time()
    run = make(*given)
    run()
    return {"outcome": "", "first_seconds": process_time() - begin, "float64": error}, run


class Sizes(NamedTuple):
    """The sizes of a run: all models, by all optimisers, with all numbers of steps."""

    models: tuple[str, ...]
    rules: tuple[str, ...]
    steps: tuple[int, ...]
    rounds: int  # timed runs of each contender, in turn
    seconds: float  # that the timed runs of a cell may take, about; one is given up after 900


SIZES = {
    Preset.SMOKE: Sizes(("perceptron-1e3",), ("Adam",), (2,), 1, 5.0),
    Preset.QUICK: Sizes(("perceptron-1e3", *[*MODELS][2:]), (*RULES,), (5, 20, 100), 7, 10.0),
    Preset.PAPER: Sizes(tuple(MODELS), tuple(RULES), (5, 20, 100), 7, 120.0),
}


def ratio(cell: dict[str, Any], name: str, what: str) -> float:
    """The median over rounds of what is needed over the least of higher's and TorchOpt's in each.

    NaN where neither of these has numbers, infinite where the contender has none.
    """
    known = {n: one for n, one in cell.get("contenders", {}).items() if not one["outcome"]}
    rivals = [known[rival][what] for rival in RIVALS if rival in known]
    if not rivals:
        return math.nan
    least = list(map(min, zip(*rivals, strict=True)))
    return times(known[name][what], least) if name in known else math.inf


def evaluate(cells: Cells) -> list[Criterion]:
    """The claims on each of odeopt's two ways."""
    found, worst = list[Criterion](), ""
    measures = (TIME, "time of the faster"), (MEMORY, "smaller of the memories")
    for name, (what, whose) in product(OURS, measures):
        every = {key: ratio(cell, name, what) for key, cell in cells.items()}
        known = {key: own for key, own in every.items() if not math.isnan(own)} or {"": math.nan}
        middle, worst = median(known.values()), max(known, key=known.__getitem__)
        claim = f"{name}: at most {{:.1f}} times the {whose} of higher and TorchOpt in {{}}"
        if what == TIME:
            text = claim.format(MEDIAN, "the median cell")
            found.append(Criterion(text, middle <= MEDIAN, f"{middle:.2f} times"))
        within, text = (
            sum(own <= EVERY for own in known.values()),
            claim.format(EVERY, "every cell"),
        )
        numbers = f"in {within} of {len(known)}; up to {known[worst]:.2f} times ({worst})"
        found.append(Criterion(text, within == len(known), numbers))
    return found if worst else [one._replace(met=None, numbers="") for one in found]


def ahead(cell: dict[str, Any]) -> str:
    """Who needs less than the better of odeopt's two ways, and how much of it; "" if nobody."""
    parts: list[str] = []
    for what in (TIME, MEMORY):
        best = min(ratio(cell, name, what) for name in OURS)
        shares = {name: ratio(cell, name, what) / best for name in (*RIVALS, UNROLLED)}
        less = [f"{name} {own:.2f}" for name, own in shares.items() if own < 1]
        parts += [f"{what.replace('_', ' ')}: {', '.join(less)}"] if less else []
    return "; ".join(parts)


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    more = str(settings.device), sizes.rounds, sizes.seconds
    alone = partial(processes.run, measure, limit=900.0)
    points = [Point(*own) for own in product(sizes.models, sizes.rules, sizes.steps)]
    chosen = [Cell(point.key, partial(alone, point, *more)) for point in points]
    done = outline.compute(settings, "defaults", REVISION, sizes, chosen)
    rows = [[one.claim, one.verdict, one.numbers or "-"] for one in evaluate(done.cells)]
    lines = [f"- {key}: {text}" for key, cell in done.cells.items() if (text := ahead(cell))]
    each = [(key, cell.get("contenders", {})) for key, cell in done.cells.items()]
    entries = {f"{key}, {name}": one for key, cell in each for name, one in cell.items()}
    note = "What others need over what the better of odeopt's two ways needs, where below 1."
    sections = [
        _head(sizes),
        f"## What is claimed\n\n{markdown.table(['claim', 'verdict', 'measured'], rows)}",
        f"## Where others are ahead\n\n{note}\n\n" + ("\n".join(lines) or "- nowhere"),
        *(_plot(done.cells, rule, sizes, settings) for rule in sizes.rules),
        *_tables(done.cells),
        outline.without_numbers(done.cells | entries, title="Without numbers"),
    ]
    outline.write(settings, "Default settings", done, sections)


def _plot(cells: Cells, rule: str, sizes: Sizes, settings: Settings) -> str:
    lines: dict[str, dict[float, float]] = {}
    for name, model, n in product(OURS, sizes.models, sizes.steps):
        own = ratio(cells[Point(model, rule, n).key], name, TIME)
        lines.setdefault(f"{model}, {name}", {})[n] = own
    path = settings.store.directory / f"defaults-{rule.lower()}.png"
    labels = Labels(rule, "steps", "time over the faster of higher and TorchOpt")
    equal = Slope("as fast", 0, (min(sizes.steps), 1.0), max(sizes.steps))
    return picture(path, f"{rule}: ratios against steps", labels, lines, [equal])


def _tables(cells: Cells) -> list[str]:
    """The ratios alone, and a table of each cell."""
    ways = [(what, name) for what in (TIME, MEMORY) for name in (*OURS, UNROLLED)]
    rows = [[key, *(f"{ratio(cell, n, w):.2f}" for w, n in ways)] for key, cell in cells.items()]
    names = [f"{name}, {'time' if what == TIME else 'memory'}" for what, name in ways]
    ratios = f"## Over the better of higher and TorchOpt\n\n{markdown.table(['', *names], rows)}"
    columns: list[Column] = [
        ("seconds", lambda one: f"{median(one[TIME]):.3g}"),
        ("rounds", lambda one: len(one[TIME])), ("first call, s", "{first_seconds:.3g}"),
        ("peak MiB", lambda one: f"{one[MEMORY][0] / costs.MIB:.2f}"),
        ("error, float64", "{float64:.1e}"), ("error, float32", "{float32:.1e}"),
    ]  # fmt: skip
    entries = [
        ([key, name], one["outcome"] or one)
        for key, cell in cells.items() for name in CONTENDERS
        for one in [cell.get("contenders", {name: cell})[name]]
    ]  # fmt: skip
    return [ratios, f"## Every cell\n\n{markdown.described(['', 'by'], columns, entries)}"]


def _head(sizes: Sizes) -> str:
    rules = " and ".join(f"`{rule}(**{RULES[rule]})`" for rule in sizes.rules)
    return f"""What people type first: the gradient of an outer loss w.r.t. the initialisation
through a training, by default settings: nothing is compiled, no schedule chosen. odeopt has two
ways, `RecordedLoop` around one's own loop, and `ODEOptimizer(...).value_and_grad` of an update rule
on what `from_module` takes apart. Beside them are higher (`innerloop_ctx`), TorchOpt (`MetaSGD`,
`MetaAdam`) and autograd through updates written by hand.

Every step is on one batch of {BATCH}, in float32 on one thread, with cross entropy, by {rules};
other options are the defaults. The outer loss is that of another batch, in evaluation mode.
Perceptrons have three layers, tanh, and about as many parameters as their names say; the conv net
two convolutions with batch normalisation and running statistics. The encoder is a
`TransformerEncoderLayer` of width 16 on sequences of 8, without fused attention, which has no
second derivative. Whoever cannot do a cell is left out of it and listed at the end.

Contenders of a cell are in one process, in turn, in up to {sizes.rounds} rounds, fewer where they
would take more than {sizes.seconds:g} seconds. Other work may run beside: seconds are processor
time, ratios are medians of those within a round, to the faster of higher and TorchOpt in it. "First
call" is the round before, with what is built once, after imports and the check in double precision.
Peaks are of live tensors above those before the call, in a run of its own.

Errors are those to unrolled autograd in double precision, of the same computation in double
precision and of the last run measured. Adam is compared with its own formula: higher adds eps
before the bias is corrected, as torch once did. TorchOpt corrects it in single precision."""
