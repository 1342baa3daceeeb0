"""The problems: tasks for a perceptron, a convolutional network and a transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from benchmarks.problems import cosmixture, losses, text
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, Task, stack
from benchmarks.problems.transformer import Transformer
from odeopt.tools.tree import Ravel, ravel

WAYS, SIDE, FILTERS, LAYERS = 20, 28, 64, 4
WINDOWS, LENGTH, WIDTH = 16, 32, 32


@dataclass(frozen=True)
class Problem:
    """Tasks, a loss and an initialisation, in one dtype on one device.

    Attributes:
        name: For keys.
        title: For headings.
        loss: Of parameters on the batch of one task.
        params: Where every task begins.
        tasks: Stacked.
        lr: The learning rate of gradient descent.
        flow_step: Of a horizon, the length of an RK4 step that suffices for the flow's gradient
            to about 1e-2.
        reference_step: The length of an RK4 step of the reference.
    """

    name: str
    title: str
    loss: Callable[[Parameters, Batch], Tensor]
    params: Parameters
    tasks: Task
    lr: float
    flow_step: Callable[[float], float]
    reference_step: float

    def to(self, device: torch.device, dtype: torch.dtype) -> Problem:
        """The same elsewhere or in another precision."""
        params = {name: leaf.to(device, dtype) for name, leaf in self.params.items()}
        return replace(self, params=params, tasks=self.tasks.to(device, dtype))

    @property
    def count(self) -> int:
        """The number of tasks."""
        return self.tasks.train.x.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tasks.train.x.device

    def each(self) -> list[Task]:
        """The tasks one by one."""
        train, validation = self.tasks
        return [
            Task(Batch(train.x[i], train.y[i]), Batch(validation.x[i], validation.y[i]))
            for i in range(self.count)
        ]

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
    """A problem in float64 on the CPU.

    Args:
        name: A key of `PROBLEMS`.
        tasks: How many.
    """
    return PROBLEMS[name](tasks)


def _mlp(tasks: int) -> Problem:
    def loss(params: Parameters, batch: Batch) -> Tensor:
        return losses.half_mean_square(cosmixture.MODEL.apply(params, batch.x), batch.y)

    title = "CosMixture, perceptron 2-32-32-1 (1185 parameters), 100 + 100 points"
    params, drawn = cosmixture.initial_parameters(0), cosmixture.tasks(range(tasks), "code")
    return Problem("mlp", title, loss, params, drawn, 0.01, _mlp_step, 0.02)


def _mlp_step(t1: float) -> float:
    """The curvature grows on the way."""
    return 0.5 if t1 <= 5 else 0.1


def _conv(tasks: int) -> Problem:
    def loss(params: Parameters, batch: Batch) -> Tensor:
        x = batch.x
        for layer in range(LAYERS):
            weight, bias = params[f"conv{layer}.weight"], params[f"conv{layer}.bias"]
            x = functional.avg_pool2d(
                functional.gelu(functional.conv2d(x, weight, bias, padding=1)), 2
            )
        logits = functional.linear(x.flatten(-3), params["head.weight"], params["head.bias"])
        return losses.cross_entropy(logits, batch.y)

    params = _conv_parameters()
    count = sum(leaf.numel() for leaf in params.values())
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
    model = Transformer(len(text.ALPHABET), LENGTH, WIDTH, heads=2, blocks=2)

    def loss(params: Parameters, batch: Batch) -> Tensor:
        return model.losses(params, batch.x).mean()

    params = model.init(0)
    count = sum(leaf.numel() for leaf in params.values())
    title = (
        f"next characters, transformer of two blocks and width {WIDTH} ({count:,} parameters),"
        f" {WINDOWS} + {WINDOWS} windows of {LENGTH}"
    )
    drawn = stack([_windows(seed) for seed in range(tasks)])
    return Problem("transformer", title, loss, params, drawn, 0.02, lambda _: 0.1, 0.04)


def _windows(seed: int) -> Task:
    codes = text.windows("train", 2 * WINDOWS, LENGTH + 1, 0.0, seed).codes
    parts = codes[:WINDOWS], codes[WINDOWS:]
    train, validation = (Batch(part, part[:, :0]) for part in parts)
    return Task(train, validation)


PROBLEMS = {"mlp": _mlp, "conv": _conv, "transformer": _transformer}
