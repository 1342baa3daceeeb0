"""Trainings on ten images, whose pixels, labels and learning rate are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

import odeopt
from benchmarks import budget
from benchmarks.problems import classification, models
from benchmarks.problems.classification import Split
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch

MODEL = models.mlp([64, 32, 10])
CLASSES = 10
SLOTS = 20
SHARP = 5.0
"""The logit of the right class in the labels of real images: a probability of 0.94."""


class Images(NamedTuple):
    """What a network is trained on.

    Attributes:
        x: Pixels, [10, 64].
        labels: Logits of the label's probabilities, [10, 10].
        log_lr: The logarithm of the learning rate.
    """

    x: Tensor
    labels: Tensor
    log_lr: Tensor


class Step(NamedTuple):
    """What an update of images needs.

    Attributes:
        value: The loss of the real images after training.
        gradient: Of it.
        spent: See `Training.cost`.
    """

    value: float
    gradient: Images
    spent: int


@dataclass(frozen=True)
class Training:
    """Trainings by gradient descent on all ten images in every step, in float32.

    Attributes:
        split: Real images; those for validation are not used.
        steps: Of one training.
        compile: How kernels are run.
    """

    split: Split
    steps: int
    compile: str | None

    @cached_property
    def opt(self) -> odeopt.ODEOptimizer:
        """Gradient descent; its hparams are the images and the labels."""
        return odeopt.ODEOptimizer(
            odeopt.SGD(_loss), checkpoints=odeopt.Binomial(SLOTS), compile=self.compile
        )

    def start(self, seed: int) -> Parameters:
        """Random parameters."""
        return {name: leaf.to(self.split.train.x) for name, leaf in MODEL.init(seed).items()}

    def value_and_grad(self, images: Images, seed: int) -> Step:
        """The loss of the real images after a training, and its gradient."""
        result = self.opt.value_and_grad(_outer_loss)(
            self.start(seed), (), self._grid(images), self.split.train, images[:2]
        )
        x, labels = result.grads.hparams
        log_lr = result.grads.dt.sum().to(x) * images.log_lr.exp()  # one rate for all steps
        return Step(result.value.item(), Images(x, labels, log_lr), self.cost(result.stats))

    def cost(self, stats: odeopt.Stats) -> int:
        """In gradients of ten images: of the training, and of the loss of the real images."""
        return budget.spent(stats) + len(self.split.train.y) // CLASSES

    def trial_cost(self) -> int:
        """The same of a training whose loss is only evaluated, a third of a gradient."""
        return self.steps + len(self.split.train.y) // CLASSES // 3

    @torch.no_grad()
    def train(self, images: Images, seed: int) -> Parameters:
        """The trained parameters."""
        solution = self.opt.solve(self.start(seed), (), self._grid(images), images[:2])
        return solution.params

    def value(self, images: Images, seed: int) -> float:
        """The loss of the real images after a training; infinite where it diverges."""
        try:
            params = self.train(images, seed)
        except odeopt.DivergenceError:
            return float("inf")
        return _outer_loss(params, self.split.train, None).item()

    def _grid(self, images: Images) -> odeopt.TimeGrid:
        return odeopt.TimeGrid.from_lr(images.log_lr.exp().double().cpu(), self.steps)


def means(real: Batch, log_lr: float) -> Images:
    """The mean image of each class."""
    return _labelled(torch.stack([real.x[real.y == c].mean(0) for c in range(CLASSES)]), log_lr)


def draw(real: Batch, log_lr: float, seed: int) -> Images:
    """A random real image of each class."""
    generator = Generator().manual_seed(seed)
    labels = real.y.cpu()
    chosen: list[Tensor] = []
    for c in range(CLASSES):
        members = (labels == c).nonzero().flatten()
        chosen.append(members[torch.randint(len(members), (1,), generator=generator)])
    return _labelled(real.x[torch.cat(chosen).to(real.x.device)], log_lr)


def _labelled(x: Tensor, log_lr: float) -> Images:
    return Images(x, SHARP * torch.eye(CLASSES).to(x), torch.tensor(log_lr).to(x))


def _loss(params: Parameters, batch: tuple[()], images: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy against the labels' probabilities."""
    del batch
    x, labels = images
    return functional.cross_entropy(MODEL.apply(params, x), labels.softmax(-1))


def _outer_loss(params: Parameters, real: Batch, images: object) -> Tensor:
    """Cross-entropy of real images."""
    del images
    return classification.example_losses(MODEL, params, real).mean()
