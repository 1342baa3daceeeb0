"""The gradients of many outer losses of one training, against that of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.harness import costs, markdown, outline, processes
from benchmarks.harness.markdown import Column
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Preset, Settings
from benchmarks.peers.criteria import Criterion
from benchmarks.problems import models
from odeopt.testing import relative_error
from odeopt.tools import tree

REVISION = 1  # raised when what a cell computes changes, so that stored cells are computed anew
INPUTS, MOMENTUM, LR = 10, 0.9, 0.01
SMALL = 1e4  # parameters, up to which a net is small
LIMITS = {True: 0.4, False: 1.1}  # products that a further loss may cost, by whether it is small
AGREED = 1e-9  # beyond this relative error, in double precision, it is another gradient
ONE, MANY, BATCHED = "one loss", "many=True", "unrolled autograd, batched"

Gradient = Callable[[], Tensor]


class Point(NamedTuple):
    """One training and its outer losses."""

    width: int  # of three hidden layers
    batch: int  # examples of each step
    steps: int
    losses: int  # one for each validation example

    @property
    def key(self) -> str:
        """The key of its cell."""
        return f"3x{self.width} batch={self.batch} steps={self.steps} losses={self.losses}"


class Problem:
    """Regression by a perceptron, by SGD with momentum."""

    def __init__(self, point: Point, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        model = models.mlp([INPUTS, *[point.width] * 3, 1])
        draw = partial(torch.randn, dtype=torch.float64)
        self.steps, self._model = point.steps, model
        self.params = {name: leaf.to(dtype) for name, leaf in model.init(0).items()}
        sizes = point.batch, point.losses
        self.train, self.held_out = [(draw(n, INPUTS).to(dtype), draw(n).to(dtype)) for n in sizes]
        self.grid = odeopt.TimeGrid.from_lr(LR, point.steps)
        self.optimizer = odeopt.ODEOptimizer(odeopt.SGD(self.loss, momentum=MOMENTUM))

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.numel() for leaf in self.params.values())

    def errors(self, params: Any, batch: Any) -> Tensor:
        """Of each example."""
        return (self._model.apply(params, batch[0])[:, 0] - batch[1]).square()

    def loss(self, params: Any, batch: Any) -> Tensor:
        """The inner one, and the outer one where there is but one."""
        return self.errors(params, batch).mean()

    def forward(self) -> Tensor:
        """The training alone."""
        return tree.flat(self.optimizer.solve(self.params, self.train, self.grid).params)

    def one(self) -> Tensor:
        """The gradient of the mean."""
        call = self.optimizer.value_and_grad(self.loss)
        return tree.flat(call(self.params, self.train, self.grid, self.held_out).grads.params)

    def many(self) -> Tensor:
        """The gradient of each error, shape [losses, parameters]."""
        call = self.optimizer.value_and_grad(self.errors, many=True)
        return _rows(call(self.params, self.train, self.grid, self.held_out).grads.params)

    def batched(self) -> Tensor:
        """The same by autograd through the whole training, batched over its cotangents."""
        start = {name: leaf.clone().requires_grad_() for name, leaf in self.params.items()}
        params, momenta = dict(start), dict[str, Tensor]()
        for _ in range(self.steps):
            value, leaves = self.loss(params, self.train), list(params.values())
            slopes = torch.autograd.grad(value, leaves, create_graph=True)
            for name, slope in zip(start, slopes, strict=True):
                last = momenta.get(name)
                momenta[name] = slope if last is None else MOMENTUM * last + slope
                params[name] = params[name] - LR * momenta[name]
        errors = self.errors(params, self.held_out)
        each = torch.eye(len(errors), dtype=errors.dtype)
        leaves = list(start.values())
        return _rows(torch.autograd.grad(errors, leaves, each, is_grads_batched=True))


def _rows(gradients: Any) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in tree.tensors(gradients)], dim=1)


def measure(point: Point, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of processor time in each round, peaks, and the gradient's error in float64."""
    exact = Problem(point, torch.float64)
    error = relative_error(exact.many(), exact.batched())
    if not error <= AGREED:
        raise ArithmeticError(f"another gradient, off by {error:.1e}")
    problem, device = Problem(point, torch.float32), torch.device("cpu")
    runs: dict[str, Gradient] = {
        "forward": problem.forward, ONE: problem.one, MANY: problem.many, BATCHED: problem.batched,
    }  # fmt: skip
    for run in runs.values():
        run()
    timed = costs.in_turn(runs, rounds, device, seconds, process_time)
    peaks = {name: costs.peak_live_bytes(run, device) for name, run in runs.items()}
    return {"outcome": "", "parameters": problem.size, "seconds": timed, "bytes": peaks,
            "losses": point.losses, "float64": error}  # fmt: skip


def products(cell: dict[str, Any]) -> float:
    """What a further loss costs, in backward sweeps of one loss; the median over rounds."""
    own = cell["seconds"]
    each = zip(own["forward"], own[ONE], own[MANY], strict=True)
    return median(
        (many - one) / ((cell["losses"] - 1) * (one - forward)) for forward, one, many in each
    )


def over_batched(cell: dict[str, Any]) -> float:
    """The time over that of unrolled autograd; the median over rounds."""
    pairs = zip(cell["seconds"][MANY], cell["seconds"][BATCHED], strict=True)
    return median(many / batched for many, batched in pairs)


class Sizes(NamedTuple):
    """The sizes of a run."""

    points: tuple[Point, ...]
    rounds: int  # timed runs of each contender, in turn
    seconds: float  # that the timed runs of a cell may take, about


_QUICK = (
    *(Point(width, batch, 100, 100) for width, batch in product((16, 32, 64), (20, 100))),
    Point(32, 20, 500, 100), Point(32, 20, 100, 10), Point(32, 20, 100, 1000),
    Point(256, 50, 50, 100),
)  # fmt: skip
SIZES = {
    Preset.SMOKE: Sizes((Point(8, 5, 3, 4),), 1, 5.0),
    Preset.QUICK: Sizes(_QUICK, 5, 15.0),
    Preset.PAPER: Sizes((*_QUICK, Point(256, 50, 500, 100), Point(512, 50, 50, 100)), 7, 300.0),
}


def evaluate(cells: Cells) -> list[Criterion]:
    """The claims on the cost of a further loss."""
    known = {key: cell for key, cell in cells.items() if not cell["outcome"]}
    found: list[Criterion] = []
    for small, limit in LIMITS.items():
        which = "at most" if small else "more than"
        claim = (
            f"{which} {SMALL:g} parameters: a further loss costs at most {limit} products a step"
        )
        own = {key: products(cell) for key, cell in known.items()
               if (cell["parameters"] <= SMALL) is small}  # fmt: skip
        if not own:
            found.append(Criterion(claim, None, ""))
            continue
        worst = max(own, key=own.__getitem__)
        numbers = f"{median(own.values()):.2f} in the median cell, up to {own[worst]:.2f} ({worst})"
        found.append(Criterion(claim, own[worst] <= limit, numbers))
    return found


def run(settings: Settings) -> None:
    """Compute what is missing and write the report and `results.json`."""
    sizes = SIZES[settings.preset]
    alone = partial(processes.run, measure, limit=900.0)
    chosen = [Cell(point.key, partial(alone, point, *sizes[1:])) for point in sizes.points]
    done = outline.compute(settings, "many-losses", REVISION, sizes, chosen)
    rows = [[one.claim, one.verdict, one.numbers or "-"] for one in evaluate(done.cells)]
    columns: list[Column] = [
        ("parameters", "{parameters}"),
        ("products per further loss", lambda one: f"{products(one):.3f}"),
        *((f"{name}, s", lambda one, n=name: f"{median(one['seconds'][n]):.3g}")
          for name in ("forward", ONE, MANY, BATCHED)),
        ("time over unrolled", lambda one: f"{over_batched(one):.2f}"),
        *((f"{name}, MiB", lambda one, n=name: f"{one['bytes'][n] / costs.MIB:.1f}")
          for name in (MANY, BATCHED)),
        ("error, float64", "{float64:.1e}"),
    ]  # fmt: skip
    entries = [([key], cell["outcome"] or cell) for key, cell in done.cells.items()]
    sections = [
        _HEAD,
        f"## What is claimed\n\n{markdown.table(['claim', 'verdict', 'measured'], rows)}",
        f"## Every cell\n\n{markdown.described([''], columns, entries)}",
        outline.without_numbers(done.cells, title="Without numbers"),
    ]
    outline.write(settings, "Many outer losses", done, sections)


_HEAD = f"""One training has many outer losses: here the error of each validation example. Their
gradients w.r.t. the initialisation come from one forward and one backward sweep, with
`value_and_grad(errors, many=True)`.

What does a further loss cost? A product is a step of the backward sweep of one loss: "{ONE}" less
"forward", over the number of steps. A further loss costs what "{MANY}" takes more than "{ONE}",
over the number of further losses and of steps. Beside it is autograd through the whole training,
`is_grads_batched=True`, which must hold the graphs of all steps.

Perceptrons with three tanh layers of the width given, SGD with momentum, float32, one thread,
default settings. Seconds are processor time, medians of rounds in turn in one process. Peaks are
of live tensors above those before the call. Errors are those to unrolled autograd, in float64."""
