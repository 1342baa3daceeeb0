"""Ten synthetic images that a network can be trained on in place of a thousand real ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from math import log
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.nn import functional

import odeopt
from benchmarks import budget
from benchmarks.bilevel import descent
from benchmarks.bilevel.descent import UNSEEN, Evaluation, Outcome, Results, best_of
from benchmarks.harness import markdown, outline
from benchmarks.harness.outline import Cell
from benchmarks.harness.plots import Curve, Labels, curves, save
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import classification, models
from benchmarks.problems.classification import Split, accuracy, split_digits
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, move


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    seeds: int  # repetitions, each with other real images
    real: int  # real training images
    steps: int  # steps of a training on ten images
    updates: int  # updates of the synthetic images
    retrainings: int  # trainings from new initialisations that images are judged by
    compile: str | None  # how kernels are run


SIZES = {
    Preset.SMOKE: Sizes(1, 100, 10, 2, 2, None),
    Preset.QUICK: Sizes(1, 1000, 200, 60, 10, "trace"),
    Preset.PAPER: Sizes(5, 1000, 500, 1000, 20, "inductor"),
}


MODEL = models.mlp([64, 32, 10])
CLASSES = 10
SLOTS = 20
SHARP = 5.0
"""The logit of the right class in the labels of real images: a probability of 0.94."""


class Images(NamedTuple):
    """What a network is trained on."""

    x: Tensor  # pixels, [10, 64]
    labels: Tensor  # logits of the label's probabilities, [10, 10]
    log_lr: Tensor  # the logarithm of the learning rate


@dataclass(frozen=True)
class Training:
    """Trainings by gradient descent on all ten images in every step, in float32."""

    split: Split  # real images; those for validation are not used
    steps: int  # of one training
    compile: str | None  # how kernels are run

    @cached_property
    def opt(self) -> odeopt.ODEOptimizer:
        """Gradient descent; its hparams are the images and the labels."""
        return odeopt.ODEOptimizer(
            odeopt.SGD(_loss), checkpoints=odeopt.Binomial(SLOTS), compile=self.compile
        )

    def inputs(self, images: Images, seed: int) -> tuple[Parameters, tuple[()], odeopt.TimeGrid]:
        """Random parameters, no batch (the hparams are what is trained on), and the rates."""
        start = move(MODEL.init(seed), self.split.train.x.device, self.split.train.x.dtype)
        return start, (), odeopt.TimeGrid.from_lr(images.log_lr.exp().double().cpu(), self.steps)

    def value_and_grad(self, images: Images, seed: int) -> Evaluation:
        """The loss of the real images after a training, and its gradient."""
        result = self.opt.value_and_grad(_real_loss)(
            *self.inputs(images, seed), self.split.train, images[:2]
        )
        x, labels = result.grads.hparams
        log_lr = result.grads.dt.sum().to(x) * images.log_lr.exp()  # one rate for all steps
        return Evaluation(result.value.item(), Images(x, labels, log_lr), self.cost(result.stats))

    def cost(self, stats: odeopt.Stats) -> int:
        """In gradients of ten images: of the training, and of the loss of the real images."""
        return budget.spent(stats) + len(self.split.train.y) // CLASSES

    def trial_cost(self) -> int:
        """The same of a training whose loss is only evaluated, a third of a gradient."""
        return self.steps + len(self.split.train.y) // CLASSES // 3

    @torch.no_grad()
    def train(self, images: Images, seed: int) -> Parameters:
        """The trained parameters."""
        return self.opt.solve(*self.inputs(images, seed), images[:2]).params

    def value(self, images: Images, seed: int) -> float:
        """The loss of the real images after a training."""
        return _real_loss(self.train(images, seed), self.split.train).item()


def mean_images(real: Batch, log_lr: float) -> Images:
    """The mean image of each class."""
    return _labelled(torch.stack([real.x[real.y == c].mean(0) for c in range(CLASSES)]), log_lr)


def random_images(real: Batch, log_lr: float, seed: int) -> Images:
    """A random real image of each class."""
    generator = Generator().manual_seed(seed)
    members = [(real.y.cpu() == c).nonzero() for c in range(CLASSES)]
    chosen = [own[torch.randint(len(own), (1,), generator=generator)] for own in members]
    return _labelled(real.x[torch.cat(chosen).flatten().to(real.x.device)], log_lr)


def _labelled(x: Tensor, log_lr: float) -> Images:
    return Images(x, SHARP * torch.eye(CLASSES).to(x), torch.tensor(log_lr).to(x))


def _loss(params: Parameters, batch: tuple[()], images: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy against the labels' probabilities."""
    del batch
    x, labels = images
    return functional.cross_entropy(MODEL.apply(params, x), labels.softmax(-1))


_real_loss = classification.mean_loss(MODEL)


UPDATE_SIZE = 0.03
"""The learning rate of pixels, labels and the logarithm of the learning rate (Adam)."""

RATES = (0.01, 2.0)
"""The range of learning rates for real images."""

FIRST_RATE = 0.2
GRID = 12
"""How many learning rates are tried for images that are not searched for."""


def distil(training: Training, updates: int) -> Outcome:
    """Adam along the exact gradient through whole trainings, from the mean of each class.

    Every update has its own initialisation. The given images are those of the lowest loss seen.
    """
    begin, wasted = mean_images(training.split.train, log(FIRST_RATE)), training.trial_cost()
    end = descent.descend(begin, training.value_and_grad, updates, UPDATE_SIZE, wasted)
    return Outcome(end.best, end.spent, {"losses": end.values, "loss": min(end.values)})


def search(training: Training, allowed: int, seed: int) -> Outcome:
    """The best of random draws of real images and learning rates, until the budget is spent."""
    random, real, cost = Random(seed), training.split.train, training.trial_cost()
    low, high = map(log, RATES)
    trials = max(1, allowed // cost)
    choices = (
        random_images(real, random.uniform(low, high), random.randrange(2**31))
        for _ in range(trials)
    )
    best, losses = best_of(random_images(real, log(FIRST_RATE), 0), choices, training.value)
    return Outcome(best, trials * cost, {"trials": trials, "loss": min(losses)})


def tune(training: Training, images: Images) -> Outcome:
    """The same images with the best of a grid of learning rates."""
    rates = torch.linspace(log(RATES[0]), log(RATES[1]), GRID).to(images.log_lr)
    tried = [images._replace(log_lr=rate) for rate in rates]
    best, losses = best_of(tried[0], tried, lambda images, _: training.value(images, 0))
    return Outcome(best, GRID * training.trial_cost(), {"loss": min(losses)})


CONTEST, REFERENCES = "contest", "references"
DRAWS = 5
"""Random draws of ten real images, each with a tuned learning rate."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """Two cells per seed."""
    return [
        Cell(key(seed, part), partial(compute, settings, sizes, seed))
        for seed in range(sizes.seeds)
        for part, compute in ((REFERENCES, _references), (CONTEST, _contest))
    ]


def key(seed: int, part: str) -> str:
    """The key of a cell."""
    return f"seed={seed} {part}"


def _training(settings: Settings, sizes: Sizes, seed: int) -> Training:
    split = split_digits(sizes.real, 0, seed)
    return Training(move(split, settings.device, torch.float32), sizes.steps, sizes.compile)


def _references(settings: Settings, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Real images, random or mean, with tuned learning rates."""
    training = _training(settings, sizes, seed)
    real = training.split.train
    drawn = [random_images(real, 0.0, draw) for draw in range(DRAWS)]
    *randoms, means = (
        judge(training, tune(training, images), sizes)
        for images in (*drawn, mean_images(real, 0.0))
    )
    mean = {name: fmean(one[name] for one in randoms) for name in ("accuracy", "loss", "spent")}
    return {"random": mean, "means": means}


def _contest(settings: Settings, sizes: Sizes, seed: int) -> dict[str, Any]:
    """The gradient, and a search that is given what it has spent."""
    training = _training(settings, sizes, seed)
    distilled = distil(training, sizes.updates)
    searched = search(training, distilled.spent, seed)
    images = distilled.choice
    return {
        "distilled": judge(training, distilled, sizes)
        | {"images": {"x": images.x.tolist(), "labels": images.labels.softmax(-1).tolist()}},
        "searched": judge(training, searched, sizes),
    }


def judge(training: Training, outcome: Outcome, sizes: Sizes) -> dict[str, Any]:
    """The mean test accuracy of networks from new initialisations, and the outcome."""
    accuracies = [
        accuracy(MODEL, training.train(outcome.choice, UNSEEN + index), training.split.test)
        for index in range(sizes.retrainings)
    ]
    return {
        "accuracy": fmean(accuracies), "lr": outcome.choice.log_lr.exp().item(),
        "spent": outcome.spent, **outcome.details,
    }  # fmt: skip


REVISION = 2

ROWS = {
    "random": (REFERENCES, f"random real images, tuned rate (mean of {DRAWS} draws)"),
    "searched": (CONTEST, "the best of random real images and rates, same budget"),
    "means": (REFERENCES, "the mean image of each class, tuned rate"),
    "distilled": (CONTEST, "synthetic images, labels and rate by the gradient"),
}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(
        settings, "bilevel --only distillation", REVISION, sizes, cells(settings, sizes)
    )
    results = {
        name: [done.cells[key(seed, part)][name] for seed in range(sizes.seeds)]
        for name, (part, _) in ROWS.items()
    }
    first = results["distilled"][0]
    folder = settings.store.directory
    curves(
        folder / "losses.png",
        Labels("images distilled", "updates", "loss of the real images after training"),
        [Curve("one initialisation each", range(len(first["losses"])), first["losses"])],
    )
    picture(folder / "images.png", first["images"])
    plots = "![losses](losses.png)\n![synthetic images](images.png)"
    sections = [_head(sizes), _table(results), _verdict(results), plots]
    outline.write(settings, "Ten images in place of a thousand", done, sections)


def picture(path: Path, images: dict[str, Any]) -> Path:
    """Draw the images, each under its most likely label and that label's probability."""
    figure = Figure(figsize=(7.6, 3.6), dpi=120, layout="constrained")
    for index, axes in enumerate(figure.subplots(2, 5).flat):
        chances = images["labels"][index]
        likely = max(range(len(chances)), key=chances.__getitem__)
        axes.imshow(np.reshape(images["x"][index], (8, 8)), cmap="gray_r")
        axes.set_title(f"{likely} ({chances[likely]:.2f})", fontsize="small")
        axes.set_axis_off()
    return save(figure, path)


def _table(results: Results) -> str:
    rows: list[list[markdown.Entry]] = []
    for name, own in results.items():
        accuracies, losses, spent = (
            [cell[field] for cell in own] for field in ("accuracy", "loss", "spent")
        )
        lr = f"{own[0]['lr']:.3g}" if "lr" in own[0] else "-"
        loss, budget_spent = f"{fmean(losses):.3f}", f"{fmean(spent):.0f}"
        rows.append([ROWS[name][1], markdown.mean(accuracies), loss, lr, budget_spent])
    headers = ["ten images", "test accuracy", "loss of real images seen", "learning rate", "budget"]
    return markdown.table(headers, rows)


def _verdict(results: Results) -> str:
    means = {name: fmean(cell["accuracy"] for cell in own) for name, own in results.items()}
    ours = means.pop("distilled")
    rival, theirs = max(means.items(), key=lambda one: one[1])
    compared = "higher" if ours > theirs else "not higher"
    return (
        f"The test accuracy with the synthetic images ({ours:.3f}) is {compared} than the best of"
        f" the others ({theirs:.3f}: {ROWS[rival][1]})."
    )


def _head(sizes: Sizes) -> str:
    return f"""A network 64-32-10 (tanh, float32) is trained on ten images, one per class, by
{sizes.steps} steps of gradient descent on all of them. Their pixels, the logits of their labels and
the logarithm of the learning rate are found by {sizes.updates} updates (Adam,
{UPDATE_SIZE:g}) along the exact gradient of the loss of {sizes.real} real training
images after a whole training ({SLOTS} kept states, by Binomial), from the mean image of
each class; every update has its own initialisation. {descent.RULE}

The others train on ten real images or on class means, with labels of probability 0.94 on the right
class. Their learning rate is the best of {GRID} between {RATES[0]:g} and
{RATES[1]:g}; the search draws images and learning rates together until it has spent what
the gradient has, and keeps those of the lowest loss of the real images. {budget.RULE} Here a
minibatch is ten images, and the loss of the real images counts as so many more (a third where it is
only evaluated).

Test accuracies are means over {sizes.retrainings} trainings from initialisations that no contender
has seen, on digits by other writers, and over draws of the real images ({sizes.seeds}; ± standard
deviation)."""
