"""The problems of the contenders, and what a contender is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.problems import functions, models, transformer
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, Task, move, stack
from benchmarks.problems.transformer import Transformer
from odeopt import Stats
from odeopt.tools.tree import Ravel, ravel

WAYS, SIDE, FILTERS, LAYERS = 20, 28, 64, 4
WINDOWS, LENGTH, WIDTH = 16, 32, 32


@dataclass(frozen=True)
class Problem:
    """Tasks, a loss and an initialisation, in one dtype on one device."""

    name: str  # for keys
    title: str  # for headings
    loss: Callable[[Parameters, Batch], Tensor]  # of parameters on the batch of one task
    params: Parameters  # where every task begins
    tasks: Task  # stacked
    lr: float  # the learning rate of gradient descent
    # of a horizon, the length of an RK4 step that suffices for the flow's gradient to about 1e-2
    flow_step: Callable[[float], float]
    reference_step: float  # the length of an RK4 step of the reference

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The same elsewhere or in another precision."""
        params, tasks = move((self.params, self.tasks), device, dtype)
        return replace(self, params=params, tasks=tasks)

    @property
    def count(self) -> int:
        """The number of tasks."""
        return self.tasks.train.x.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tasks.train.x.device

    def raveled(self) -> tuple[Tensor, Ravel]:
        """The initialisation as a vector, and the way back."""
        return ravel(self.params, "params")


class Network(nn.Module):
    """A problem as packages for modules want it: called with a batch, it returns the loss."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self._loss = problem.loss
        self._names = {name: name.replace(".", "_") for name in problem.params}
        for name, leaf in problem.params.items():
            self.register_parameter(self._names[name], nn.Parameter(leaf.clone()))

    def forward(self, batch: Batch) -> Tensor:
        """The loss on a batch."""
        own = {name: getattr(self, attribute) for name, attribute in self._names.items()}
        return self._loss(own, batch)


def make(name: str, tasks: int) -> Problem:
    """A problem of `PROBLEMS`, with so many tasks, in float64 on the CPU."""
    return PROBLEMS[name](tasks)


def _mlp(tasks: int) -> Problem:
    loss = models.Problem(functions.MODEL, models.half_mean_square).loss
    title = "CosMixture, perceptron 2-32-32-1 (1185 parameters), 100 + 100 points"
    params, drawn = functions.MODEL.init(0), functions.COSMIXTURE.tasks(range(tasks), "code")
    # the curvature grows on the way
    return Problem(
        "mlp", title, loss, params, drawn, 0.01, lambda t1: 0.5 if t1 <= 5 else 0.1, 0.02
    )


def _conv(tasks: int) -> Problem:
    def loss(params: Parameters, batch: Batch) -> Tensor:
        x = batch.x
        for layer in range(LAYERS):
            weight, bias = params[f"conv{layer}.weight"], params[f"conv{layer}.bias"]
            x = functional.avg_pool2d(
                functional.gelu(functional.conv2d(x, weight, bias, padding=1)), 2
            )
        logits = functional.linear(x.flatten(-3), params["head.weight"], params["head.bias"])
        return models.cross_entropy(logits, batch.y)

    params = _conv_parameters()
    count = models.count(params)
    title = (
        f"{WAYS}-way 1-shot, {LAYERS} convolutions with {FILTERS} filters and GELU"
        f" ({count:,} parameters), {WAYS} + {WAYS} images of {SIDE}x{SIDE}"
    )
    drawn = stack([_images(seed) for seed in range(tasks)])
    return Problem("conv", title, loss, params, drawn, 0.02, lambda _: 0.1, 0.04)


def _conv_parameters() -> Parameters:
    """Drawn with the variance 2 / inputs, so that signals keep their size."""
    generator, params = Generator().manual_seed(0), Parameters()
    for layer, (inputs, outputs) in enumerate(pairwise([1, *[FILTERS] * LAYERS])):
        drawn = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
        params[f"conv{layer}.weight"] = drawn * math.sqrt(2 / (9 * inputs))
        params[f"conv{layer}.bias"] = torch.zeros(outputs, dtype=torch.float64)
    drawn = torch.randn(WAYS, FILTERS, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(WAYS, dtype=torch.float64)
    return params | {"head.weight": drawn / math.sqrt(FILTERS), "head.bias": zeros}


def _images(seed: int) -> Task:
    """One smooth random image per class, with other noise for training and for validation."""
    generator = Generator().manual_seed(seed)

    def normal(side: int) -> Tensor:
        return torch.randn(WAYS, 1, side, side, generator=generator, dtype=torch.float64)

    means, labels = functional.interpolate(normal(7), SIDE, mode="bilinear"), torch.arange(WAYS)
    train, validation = (Batch(means + 0.5 * normal(SIDE), labels) for _ in range(2))
    return Task(train, validation)


def _transformer(tasks: int) -> Problem:
    model = Transformer(len(transformer.ALPHABET), LENGTH, WIDTH, heads=2, blocks=2)

    def loss(params: Parameters, batch: Batch) -> Tensor:
        return model.losses(params, batch.x).mean()

    params = model.init(0)
    count = models.count(params)
    title = (
        f"next characters, transformer of two blocks and width {WIDTH} ({count:,} parameters),"
        f" {WINDOWS} + {WINDOWS} windows of {LENGTH}"
    )
    drawn = stack([_windows(seed) for seed in range(tasks)])
    return Problem("transformer", title, loss, params, drawn, 0.02, lambda _: 0.1, 0.04)


def _windows(seed: int) -> Task:
    codes = transformer.windows("train", 2 * WINDOWS, LENGTH + 1, 0.0, seed).codes
    parts = codes[:WINDOWS], codes[WINDOWS:]
    train, validation = (Batch(part, part[:, :0]) for part in parts)
    return Task(train, validation)


PROBLEMS = {"mlp": _mlp, "conv": _conv, "transformer": _transformer}


MAP, FLOW = "A", "B"
"""Targets: the gradient of the map that gradient descent is, and that of the flow."""


class Setup(NamedTuple):
    """What is to be differentiated."""

    problem: Problem  # with its tasks, dtype and device
    t1: float  # the horizon
    steps: int  # of gradient descent up to the horizon


COUNTS = ("gradient_evaluations", "hvps", "replayed_steps", "stored_states", "compile_seconds")


class Outcome(NamedTuple):
    """A meta-gradient, the mean over tasks, as one vector."""

    gradient: Tensor  # w.r.t. the initialisation
    stats: Stats | None = None  # what it cost, where the package counts it

    @property
    def counts(self) -> dict[str, Any]:
        """The counts that are kept."""
        return {name: getattr(self.stats, name) for name in COUNTS} if self.stats else {}


class Runner(NamedTuple):
    """A contender at work."""

    steps: int  # its steps to the horizon
    # `run(steps)` makes that many of them and differentiates; `run(1)` warms it up
    run: Callable[[int], Outcome]


@dataclass(frozen=True)
class Contender:
    """A way to the meta-gradient."""

    name: str  # for keys
    label: str  # for reports
    target: str  # what it approximates, `MAP` (exactly) or `FLOW`
    # `make(setup, setting)`; the setting, where there is one, is said by `setting`
    make: Callable[[Setup, float | None], Runner]
    setting: str = ""  # what a setting other than the default changes
    package: str = "torch"  # what it needs besides torch

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return find_spec(self.package) is not None
