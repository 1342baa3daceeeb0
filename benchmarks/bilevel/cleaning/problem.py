"""The problem: examples with wrong labels, and a training in which each of them has a weight."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.bilevel.cleaning.sizes import Case, Sizes
from benchmarks.problems import classification, models, omniglot
from benchmarks.problems.classification import Corrupted, Split
from benchmarks.problems.models import Model, Parameters
from benchmarks.problems.tasks import Batch

CHARACTERS = 50
HIDDEN = 32
LR, MOMENTUM, SLOTS = 0.1, 0.9, 20


class Problem(NamedTuple):
    """Training examples with their given labels, which of those are wrong, and clean examples."""

    model: Model
    train: Batch
    wrong: Tensor
    validation: Batch
    test: Batch


def make(case: Case, sizes: Sizes, seed: int, data: Path | None, device: torch.device) -> Problem:
    """A case's problem in float32.

    Raises:
        MissingDataError: Its data are not there.
    """
    train, validation = sizes.train[case.data], sizes.validation[case.data]
    if case.data == "omniglot":
        split = omniglot.split(data, CHARACTERS, train, validation, seed)
        widths = (omniglot.PIXELS, HIDDEN, CHARACTERS)
    else:
        split = classification.split_digits(train, validation, seed)
        widths = (64, HIDDEN, 10)
    given = classification.corrupt(split.train.y, case.share, case.kind, widths[-1], seed)
    return _assemble(models.mlp(widths), split.to(device, torch.float32), given)


def _assemble(model: Model, split: Split, given: Corrupted) -> Problem:
    labelled = Batch(split.train.x, given.y.to(split.train.x.device))
    return Problem(model, labelled, given.wrong, split.validation, split.test)


@dataclass(frozen=True)
class Training:
    """Trainings of one model: minibatches, SGD with momentum.

    Attributes:
        model: The network.
        steps: Of one training.
        batch: Examples of a minibatch.
        compile: How kernels are run.
    """

    model: Model
    steps: int
    batch: int
    compile: str | None

    @cached_property
    def plain(self) -> odeopt.ODEOptimizer:
        """All examples alike."""
        return self._optimizer(classification.mean_loss(self.model))

    @cached_property
    def weighted(self) -> odeopt.ODEOptimizer:
        """Its hparams are the weights of the examples."""
        return self._optimizer(self.loss)

    @cached_property
    def scored(self) -> odeopt.ODEOptimizer:
        """Its hparams are the scores of the examples, whose sigmoids are their weights."""
        return self._optimizer(lambda p, batch, scores: self.loss(p, batch, torch.sigmoid(scores)))

    def grid(self, steps: int | None = None) -> odeopt.TimeGrid:
        """The learning rates."""
        return odeopt.TimeGrid.from_lr(LR, steps or self.steps)

    def loss(self, params: Parameters, batch: tuple[Batch, Tensor], weights: Tensor) -> Tensor:
        """The mean over a minibatch of weight times cross-entropy."""
        examples, index = batch
        return (weights[index] * classification.example_losses(self.model, params, examples)).mean()

    def outer_loss(self, params: Parameters, validation: Batch, scores: Tensor) -> Tensor:
        """The mean cross-entropy of the validation examples."""
        del scores
        return classification.example_losses(self.model, params, validation).mean()

    def start(self, examples: Batch, seed: int) -> Parameters:
        """Random parameters."""
        return {name: leaf.to(examples.x) for name, leaf in self.model.init(seed).items()}

    def stream(self, examples: Batch, seed: int) -> odeopt.Stream:
        """Minibatches with the indices of their examples."""
        count = len(examples.y)
        index = torch.arange(count, device=examples.y.device)
        return odeopt.Stream.minibatches((examples, index), min(self.batch, count), seed)

    @torch.no_grad()
    def train(
        self, examples: Batch, seed: int, weights: Tensor | None = None, steps: int | None = None
    ) -> Parameters:
        """The trained parameters.

        Args:
            examples: What it is trained on.
            seed: Fixes the initialisation and the minibatches.
            weights: Of the examples; one each where None.
            steps: Other than those of the training.
        """
        start, stream, grid = (
            self.start(examples, seed),
            self.stream(examples, seed),
            self.grid(steps),
        )
        if weights is None:
            alone = odeopt.Stream(lambda k: stream(k)[0])
            return self.plain.solve(start, alone, grid).params
        return self.weighted.solve(start, stream, grid, weights).params

    def _optimizer(self, loss: odeopt.tools.types.Loss) -> odeopt.ODEOptimizer:
        return odeopt.ODEOptimizer(
            odeopt.SGD(loss, momentum=MOMENTUM),
            checkpoints=odeopt.Binomial(SLOTS),
            compile=self.compile,
        )
