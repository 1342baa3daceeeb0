"""A training whose learning rates and weight decays are hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.problems import classification, models
from benchmarks.problems.classification import Split
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch

MODEL = models.mlp([64, 32, 10])
SLOTS = 20
KNOTS = 8
"""The schedule is piecewise linear in the logarithm, with this many knots."""


class Rule(NamedTuple):
    """An update rule and where its hyperparameters are looked for.

    Attributes:
        make: Of a loss and weight decays.
        label: For reports.
        rates: The range of learning rates.
        decays: The range of weight decays.
    """

    make: Callable[[odeopt.tools.types.Loss, Any], odeopt.UpdateRule]
    label: str
    rates: tuple[float, float]
    decays: tuple[float, float]


RULES = {
    "sgd": Rule(
        lambda loss, decay: odeopt.SGD(loss, momentum=0.9, weight_decay=decay),
        "SGD, momentum 0.9", (1e-3, 1.0), (1e-5, 1e-1),
    ),
    "adamw": Rule(
        lambda loss, decay: odeopt.AdamW(loss, eps=1e-4, weight_decay=decay),
        "AdamW", (1e-4, 1e-1), (1e-3, 1e1),
    ),
}  # fmt: skip


class Choice(NamedTuple):
    """Hyperparameters, as logarithms: they are positive.

    Attributes:
        knots: Of the learning rates, [KNOTS].
        decays: Per parameter tensor, [] or of its shape.
    """

    knots: Tensor
    decays: Parameters


@dataclass(frozen=True)
class Training:
    """Trainings of the network on a split, in float32.

    Attributes:
        split: The examples.
        rule: A name of `RULES`.
        steps: Of one training.
        batch: Examples of a minibatch.
        compile: How kernels are run.
    """

    split: Split
    rule: str
    steps: int
    batch: int
    compile: str | None

    @cached_property
    def opt(self) -> odeopt.ODEOptimizer:
        """Its hparams are the logarithms of weight decays."""
        chosen = {
            name: (lambda logs, own=name: logs[own].exp())
            for name in MODEL.init(0)
        }  # fmt: skip
        return odeopt.ODEOptimizer(
            RULES[self.rule].make(_loss, chosen), checkpoints=odeopt.Binomial(SLOTS),
            compile=self.compile,
        )  # fmt: skip

    def start(self, seed: int) -> Parameters:
        """Random parameters."""
        return {name: leaf.to(self.split.train.x) for name, leaf in MODEL.init(seed).items()}

    def stream(self, seed: int) -> odeopt.Stream:
        """Minibatches."""
        return odeopt.Stream.minibatches(self.split.train, self.batch, seed)

    def rates(self, knots: Tensor) -> Tensor:
        """The learning rate of each step, differentiable."""
        where = torch.linspace(0, KNOTS - 1, self.steps, dtype=torch.float64)
        hats = (1 - (where[:, None] - torch.arange(KNOTS)).abs()).clamp(min=0)
        return (hats @ knots.to("cpu", torch.float64)).exp()

    def value_and_grad(self, choice: Choice, seed: int) -> tuple[float, Choice, odeopt.Stats]:
        """The validation loss after a training, its gradient, and what both cost."""
        knots = choice.knots.detach().requires_grad_()
        rates = self.rates(knots)
        result = self.opt.value_and_grad(_outer_loss)(
            self.start(seed), self.stream(seed), odeopt.TimeGrid.from_lr(rates.detach()),
            self.split.validation, choice.decays,
        )  # fmt: skip
        (along,) = torch.autograd.grad(rates, knots, result.grads.dt.to(rates))
        return result.value.item(), Choice(along, result.grads.hparams), result.stats

    @torch.no_grad()
    def train(self, choice: Choice, seed: int) -> Parameters:
        """The trained parameters.

        Raises:
            DivergenceError: They are not finite.
        """
        grid = odeopt.TimeGrid.from_lr(self.rates(choice.knots))
        return self.opt.solve(self.start(seed), self.stream(seed), grid, choice.decays).params

    def validate(self, choice: Choice, seed: int) -> float:
        """The validation loss after a training; infinite where it diverges."""
        try:
            params = self.train(choice, seed)
        except odeopt.DivergenceError:
            return float("inf")
        return _outer_loss(params, self.split.validation, None).item()


_mean_loss = classification.mean_loss(MODEL)


def _loss(params: Parameters, batch: Batch, logs: Parameters) -> Tensor:
    del logs  # they act through the rule
    return _mean_loss(params, batch)


def _outer_loss(params: Parameters, batch: Batch, logs: Parameters | None) -> Tensor:
    del logs
    return _mean_loss(params, batch)
