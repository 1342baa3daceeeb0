"""Two ways to find wrong labels with the same budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

import odeopt
from benchmarks import budget
from benchmarks.bilevel.cleaning.problem import Problem, Training
from benchmarks.problems import classification
from benchmarks.problems.classification import join, take
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch
from odeopt.outer import OuterGradient, OuterLoop, OuterObjective

UPDATE_SIZE = 0.3
"""The learning rate of the scores (Adam)."""

TRAINED_ON = ("training", "validation", "both")
SHORTER = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Choice:
    """What a contender found.

    Attributes:
        weights: Of each training example; 0 and 1 where examples are left out and kept.
        suspicion: Larger where a label is more likely wrong.
        accused: Whose labels it calls wrong.
        spent: In gradients (`benchmarks.budget`).
        details: For the results.
    """

    weights: Tensor
    suspicion: Tensor
    accused: Tensor
    spent: int
    details: dict[str, Any]


def learn(problem: Problem, training: Training, updates: int) -> Choice:
    """Weights by Adam along the exact gradient of the validation loss through a whole training.

    Each update has its own initialisation and minibatches, so that the weights do not fit one
    training only.
    """
    scores = torch.zeros_like(problem.train.y, dtype=problem.train.x.dtype)
    validation, suspicions = _ValidationLoss(problem, training), list[Tensor]()
    loop = OuterLoop(
        validation, {"scores": scores}, lambda leaves: torch.optim.Adam(leaves, lr=UPDATE_SIZE),
        callback=lambda step: suspicions.append(-loop.learned["scores"].clone()),
        show_progress=False,
    )  # fmt: skip
    values = [step.value for step in loop.fit(updates)]
    final = loop.learned["scores"]
    details = {"validation losses": values, "suspicions": suspicions}
    return Choice(torch.sigmoid(final), -final, final < 0, validation.spent, details)


class _ValidationLoss(OuterObjective):
    """The validation loss after a training, as a function of the scores; and what it cost."""

    def __init__(self, problem: Problem, training: Training) -> None:
        self.spent = 0
        self._problem, self._training = problem, training
        self._call = training.scored.value_and_grad(training.outer_loss)

    @override
    def draw(self, update: int) -> tuple[Parameters, odeopt.Stream]:
        examples = self._problem.train
        return self._training.start(examples, update), self._training.stream(examples, update)

    @override
    def gradient(
        self, learned: Mapping[str, Tensor], drawn: tuple[Parameters, odeopt.Stream]
    ) -> OuterGradient:
        grid, held_out = self._training.grid(), self._problem.validation
        result = self._call(*drawn, grid, held_out, learned["scores"])
        self.spent += budget.spent(result.stats)
        return OuterGradient(result.value, {"scores": result.grads.hparams})


@dataclass(frozen=True)
class Trial:
    """One setting of small-loss selection.

    Attributes:
        trained_on: The examples of the first training, a name of `TRAINED_ON`.
        steps: Steps of the first training.
        kept: The share of the training examples that is kept: those of the smallest loss.
    """

    trained_on: str
    steps: int
    kept: float

    def cost(self, problem: Problem, training: Training) -> int:
        """In gradients: two trainings, and the losses of all examples, counted as gradients."""
        return self.steps + ceil(len(problem.train.y) / training.batch) + training.steps


def search(problem: Problem, training: Training, allowed: int, seed: int) -> Choice:
    """Small-loss selection, its settings by random search until the budget is spent.

    A first training gives each example a loss; those of the smallest are kept for a second
    training, whose validation loss judges the setting.
    """
    random = Random(seed)
    best: tuple[float, Trial, Tensor, Tensor] | None = None
    spent = trials = 0
    outer = classification.mean_loss(problem.model)
    while True:
        trial = draw(random, training.steps)
        if best is not None and spent + trial.cost(problem, training) > allowed:
            break
        suspicion = _losses_after(trial, problem, training, trials)
        kept = suspicion.argsort()[: max(1, round(trial.kept * len(suspicion)))]
        examples = take(problem.train, kept)
        params = training.train(examples, trials)
        value = outer(params, problem.validation).item()
        spent, trials = spent + trial.cost(problem, training), trials + 1
        if best is None or value < best[0]:
            best = (value, trial, suspicion, kept)
    value, trial, suspicion, kept = best
    accused = torch.ones_like(suspicion, dtype=torch.bool)
    accused[kept] = False
    details = {"trials": trials, "validation loss": value, "chosen": vars(trial)}
    return Choice((~accused).to(suspicion), suspicion, accused, spent, details)


def draw(random: Random, steps: int) -> Trial:
    """A random setting."""
    shorter = max(1, round(steps * random.choice(SHORTER)))
    return Trial(random.choice(TRAINED_ON), shorter, random.uniform(0.2, 0.95))


def _losses_after(trial: Trial, problem: Problem, training: Training, seed: int) -> Tensor:
    examples: Batch = {
        "training": problem.train,
        "validation": problem.validation,
        "both": join(problem.train, problem.validation),
    }[trial.trained_on]
    params = training.train(examples, 10**6 + seed, steps=trial.steps)
    return classification.example_losses(problem.model, params, problem.train)
