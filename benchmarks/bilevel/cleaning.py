"""Weights of training examples, some with wrong labels, by the gradient of validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

import torch
from sklearn.metrics import f1_score, roc_auc_score  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

import odeopt
from benchmarks import budget
from benchmarks.bilevel.descent import RETURN, UNSEEN, Evaluation, Results, descend
from benchmarks.harness import markdown, outline
from benchmarks.harness.outline import Cell
from benchmarks.harness.plots import Curve, Labels, curves
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import classification, models, picture_data
from benchmarks.problems.classification import accuracy, example_losses, mean_loss
from benchmarks.problems.models import Model, Parameters
from benchmarks.problems.tasks import Batch, join, move, take


@dataclass(frozen=True)
class Case:
    """A data set and the kind of its wrong labels."""

    data: str  # "digits" or "omniglot"
    kind: str  # see `classification.corrupt`
    share: float  # of wrong labels

    def __str__(self) -> str:
        return f"{self.data} {self.kind} {self.share:g}"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    cases: tuple[Case, ...]  # what is cleaned
    seeds: int  # repetitions, each with other examples and other wrong labels
    train: dict[str, int]  # training examples (of Omniglot: drawings of each character)
    validation: dict[str, int]  # validation examples (likewise)
    batch: int  # examples of a minibatch; no choice of examples has fewer
    steps: int  # steps of a training
    updates: int  # updates of the weights
    retrainings: int  # trainings that a choice of examples is judged by
    compile: str | None  # how kernels are run


UNIFORM, NEXT = Case("digits", "uniform", 0.5), Case("digits", "next", 0.4)
DRAWN = {"omniglot": 12, "digits": 1000}
HELD = {"omniglot": 4, "digits": 100}
SIZES = {
    Preset.SMOKE: Sizes((UNIFORM,), 1, {"digits": 100}, {"digits": 30}, 20, 20, 2, 1, None),
    Preset.QUICK: Sizes((UNIFORM, NEXT), 1, DRAWN, HELD, 100, 200, 25, 3, "trace"),
    Preset.PAPER: Sizes(
        (UNIFORM, NEXT, Case("omniglot", "uniform", 0.5)), 5, DRAWN, HELD, 100, 300, 60, 5,
        "inductor",
    ),
}  # fmt: skip


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
        split = picture_data.omniglot_split(data, CHARACTERS, train, validation, seed)
        widths = (picture_data.OMNIGLOT_PIXELS, HIDDEN, CHARACTERS)
    else:
        split = classification.split_digits(train, validation, seed)
        widths = (64, HIDDEN, 10)
    labels = classification.corrupt(split.train.y, case.share, case.kind, widths[-1], seed)
    train, validation, test = move(split, device, torch.float32)
    labelled = Batch(train.x, labels.y.to(device))
    return Problem(models.mlp(widths), labelled, labels.wrong, validation, test)


@dataclass(frozen=True)
class Training:
    """Trainings of a problem's model: minibatches, SGD with momentum."""

    problem: Problem
    steps: int  # of one training
    batch: int  # examples of a minibatch
    compile: str | None  # how kernels are run

    @cached_property
    def opts(self) -> dict[str, odeopt.ODEOptimizer]:
        """With all examples alike, or hparams: their weights, or scores with these as sigmoids."""
        losses = {
            "alike": mean_loss(self.problem.model),
            "weights": self.loss,
            "scores": lambda p, batch, scores: self.loss(p, batch, torch.sigmoid(scores)),
        }
        kept = odeopt.Binomial(SLOTS)
        return {
            name: odeopt.ODEOptimizer(
                odeopt.SGD(loss, momentum=MOMENTUM), checkpoints=kept, compile=self.compile
            )
            for name, loss in losses.items()
        }

    def loss(self, params: Parameters, batch: tuple[Batch, Tensor], weights: Tensor) -> Tensor:
        """The mean over a minibatch of weight times cross-entropy."""
        examples, index = batch
        return (weights[index] * example_losses(self.problem.model, params, examples)).mean()

    def inputs(
        self, examples: Batch, seed: int, steps: int | None = None
    ) -> tuple[Parameters, odeopt.Stream, odeopt.TimeGrid]:
        """Random parameters, minibatches with the indices of their examples, and the rates."""
        device, count = examples.x.device, len(examples.y)
        start = move(self.problem.model.init(seed), device, examples.x.dtype)
        data, size = (examples, torch.arange(count, device=device)), min(self.batch, count)
        grid = odeopt.TimeGrid.from_lr(LR, steps or self.steps)
        return start, odeopt.Stream.minibatches(data, size, seed), grid

    @torch.no_grad()
    def train(
        self, examples: Batch, seed: int, weights: Tensor | None = None, steps: int | None = None
    ) -> Parameters:
        """The trained parameters.

        The seed fixes the initialisation and the minibatches. Without weights all examples are
        alike.
        """
        start, stream, grid = self.inputs(examples, seed, steps)
        if weights is None:
            alone = odeopt.Stream(lambda k: stream(k)[0])
            return self.opts["alike"].solve(start, alone, grid).params
        return self.opts["weights"].solve(start, stream, grid, weights).params


UPDATE_SIZE = 0.3
"""The learning rate of the scores (Adam)."""

TRAINED_ON = ("training", "validation", "both")
SHORTER = (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Choice:
    """What a contender found."""

    weights: Tensor  # of each training example; 0 and 1 where examples are left out and kept
    suspicion: Tensor  # larger where a label is more likely wrong
    accused: Tensor  # whose labels it calls wrong
    spent: int  # in gradients (`benchmarks.budget`)
    details: dict[str, Any]  # for the results


def learn(training: Training, updates: int) -> Choice:
    """Weights by Adam along the exact gradient of the validation loss through a whole training.

    Each update has its own initialisation and minibatches, so that the weights do not fit one
    training only.
    """
    problem = training.problem
    call = training.opts["scores"].value_and_grad(mean_loss(problem.model))

    def evaluate(scores: Tensor, update: int) -> Evaluation:
        result = call(*training.inputs(problem.train, update), problem.validation, scores)
        return Evaluation(result.value.item(), result.grads.hparams, budget.spent(result.stats))

    zeros = torch.zeros_like(problem.train.y, dtype=problem.train.x.dtype)
    end = descend(zeros, evaluate, updates, UPDATE_SIZE, training.steps, clip=None)
    details = {"validation losses": end.values, "suspicions": [-scores for scores in end.path]}
    last = end.path[-1]
    return Choice(torch.sigmoid(last), -last, last < 0, end.spent, details)


@dataclass(frozen=True)
class Trial:
    """One setting of small-loss selection."""

    trained_on: str  # the examples of the first training, a name of `TRAINED_ON`
    steps: int  # steps of the first training
    kept: float  # the share of the training examples that is kept: those of the smallest loss

    def cost(self, training: Training) -> int:
        """In gradients: two trainings, and the losses of all examples, counted as gradients."""
        losses = ceil(len(training.problem.train.y) / training.batch)
        return self.steps + losses + training.steps


def search(training: Training, allowed: int, seed: int) -> Choice:
    """Small-loss selection, its settings by random search until the budget is spent.

    A first training gives each example a loss; those of the smallest are kept for a second
    training, whose validation loss judges the setting.
    """
    random, problem = Random(seed), training.problem
    best: tuple[float, Trial, Tensor, Tensor] | None = None
    spent = trials = 0
    outer = mean_loss(problem.model)
    sets = {
        "training": problem.train,
        "validation": problem.validation,
        "both": join([problem.train, problem.validation]),
    }
    while True:
        trial = draw(random, training.steps)
        cost = trial.cost(training)
        if best is not None and spent + cost > allowed:
            break
        first = training.train(sets[trial.trained_on], 10**6 + trials, steps=trial.steps)
        suspicion = example_losses(problem.model, first, problem.train)
        kept = suspicion.argsort()[: max(1, round(trial.kept * len(suspicion)))]
        params = training.train(take(problem.train, kept), trials)
        value = outer(params, problem.validation).item()
        spent, trials = spent + cost, trials + 1
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


REFERENCES, CONTEST = "references", "contest"
REFERENCE_SETS = ("no training examples", "all training examples", "the clean ones (oracle)")


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """Two cells per case and seed."""
    return [
        Cell(key(case, seed, part), partial(compute, settings, sizes, case, seed))
        for case in available(settings, sizes)
        for seed in range(sizes.seeds)
        for part, compute in ((REFERENCES, _references), (CONTEST, _contest))
    ]


def key(case: Case, seed: int, part: str) -> str:
    """The key of a cell."""
    return f"{case} seed={seed} {part}"


def available(settings: Settings, sizes: Sizes) -> tuple[Case, ...]:
    """The cases whose data are there."""
    folder = settings.data
    there = folder is not None and (folder / picture_data.OMNIGLOT_FILE).is_file()
    return tuple(case for case in sizes.cases if there or case.data != "omniglot")


def _references(settings: Settings, sizes: Sizes, case: Case, seed: int) -> dict[str, Any]:
    """Test accuracies without any choice: none, all, and the clean examples."""
    training = _training(settings, sizes, case, seed)
    none = torch.zeros(len(training.problem.train.y), dtype=torch.bool)
    chosen = zip(REFERENCE_SETS, (none, ~none, ~training.problem.wrong), strict=True)
    return {name: _accuracies(training, mask, sizes) for name, mask in chosen}


def _contest(settings: Settings, sizes: Sizes, case: Case, seed: int) -> dict[str, Any]:
    """Both contenders; the search is given what the gradient has spent."""
    training = _training(settings, sizes, case, seed)
    wrong = training.problem.wrong.numpy()

    def auc(suspicion: Tensor) -> float:
        return float(roc_auc_score(wrong, suspicion.cpu().numpy()))

    def judge(choice: Choice, weights: Tensor) -> dict[str, Any]:
        return {
            **_accuracies(training, weights, sizes),
            "auc": auc(choice.suspicion),
            "f1": float(f1_score(wrong, choice.accused.cpu().numpy())),
            "spent": choice.spent,
            **choice.details,
        }

    learned = learn(training, sizes.updates)
    aucs = [auc(suspicion) for suspicion in learned.details.pop("suspicions")]
    searched = search(training, learned.spent, seed)
    return {
        "learned": {**judge(learned, learned.weights), "aucs": aucs},
        "kept": _accuracies(training, learned.weights > 0.5, sizes),
        "searched": judge(searched, searched.weights > 0),
    }


def _training(settings: Settings, sizes: Sizes, case: Case, seed: int) -> Training:
    problem = make(case, sizes, seed, settings.data, settings.device)
    return Training(problem, sizes.steps, sizes.batch, sizes.compile)


def _accuracies(training: Training, chosen: Tensor, sizes: Sizes) -> dict[str, float | None]:
    """Mean test accuracies of new trainings, without and with the validation examples added.

    What is chosen is a mask of training examples, or their weights.
    """
    model, train, _, validation, test = training.problem
    weights: Tensor | None = None
    both_weights: Tensor | None = None
    if chosen.dtype is torch.bool:
        train = take(train, chosen.to(train.y.device))
    else:
        weights = chosen
        both_weights = torch.cat([chosen, torch.ones_like(validation.x[:, 0])])

    def mean(examples: Batch, own: Tensor | None) -> float | None:
        if len(examples.y) == 0:
            return None
        return fmean(
            accuracy(model, training.train(examples, UNSEEN + i, own), test)
            for i in range(sizes.retrainings)
        )

    return {"alone": mean(train, weights), "added": mean(join([train, validation]), both_weights)}


REVISION = 2

LABELS = {"learned": "weights learned by the gradient", "searched": "small-loss selection, tuned"}
ROWS = {name: (REFERENCES, name) for name in REFERENCE_SETS} | {
    name: (CONTEST, label)
    for name, label in {**LABELS, "kept": "the examples of learned weight above one half"}.items()
}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(
        settings, "bilevel --only cleaning", REVISION, sizes, cells(settings, sizes)
    )
    results = {
        case: {
            name: [done.cells[key(case, seed, part)][name] for seed in range(sizes.seeds)]
            for name, (part, _) in ROWS.items()
        }
        for case in available(settings, sizes)
    }
    aucs = {str(case): _means(own["learned"], "aucs") for case, own in results.items()}
    curves(
        settings.store.directory / "auc.png",
        Labels("wrong labels told from right ones", "updates of the weights", "AUC"),
        [Curve(case, range(1, len(means) + 1), means) for case, means in aucs.items()],
        bottom=0.5,  # chance
    )
    sections = [_head(sizes), *(_section(own, case, sizes) for case, own in results.items())]
    if len(results) < len(sizes.cases):
        sections.append(
            f"Omniglot was left out: {picture_data.OMNIGLOT_FILE} is not in the data folder."
        )
    sections.append("![AUC by update](auc.png)")
    outline.write(settings, "Training examples with wrong labels", done, sections)


def _means(cells: list[dict[str, Any]], field: str) -> list[float]:
    """The means over the cells at each update."""
    return [fmean(values) for values in zip(*(cell[field] for cell in cells), strict=True)]


def _section(results: Results, case: Case, sizes: Sizes) -> str:
    fields = ("alone", "added", "auc", "f1", "spent")
    rows = [[ROWS[name][1], *(_mean(own, k) for k in fields)] for name, own in results.items()]
    headers = ["trained on", "accuracy", "with the validation examples", "AUC", "F1", "budget"]
    title = f"## {case.data}: {case.share:.0%} of the labels wrong, {_KINDS[case.kind]}"
    return f"{title}\n\n{markdown.table(headers, rows)}\n{_verdict(results, case, sizes)}"


FIELDS = {
    "alone": "test accuracy",
    "added": "test accuracy with the validation examples added",
    "auc": "AUC",
}
_KINDS = {"uniform": "by any other class", "next": "by the following class"}


def _verdict(results: Results, case: Case, sizes: Sizes) -> str:
    """Which contender won, in words."""
    sentences: list[str] = []
    for field, what in FIELDS.items():
        ours, theirs = (fmean(cell[field] for cell in results[name]) for name in LABELS)
        winner = "The gradient" if ours > theirs else "Small-loss selection"
        high, low = max(ours, theirs), min(ours, theirs)
        text = f"{winner} has the higher {what} ({high:.3f} against {low:.3f})."
        sentences.append(text if ours != theirs else f"Both have the same {what} ({ours:.3f}).")
        if field == "auc" and ours < theirs:
            sentences.append(_fitted(results["learned"], case, sizes))
    trials = fmean(cell["trials"] for cell in results["searched"])
    return " ".join([*sentences, f"The search made {trials:.0f} trials (mean over seeds)."])


def _fitted(learned: list[dict[str, Any]], case: Case, sizes: Sizes) -> str:
    """What became of the validation loss and the AUC while weights were learned."""
    losses, aucs = _means(learned, "validation losses"), _means(learned, "aucs")
    best = max(range(len(aucs)), key=aucs.__getitem__)
    held = sizes.validation[case.data]
    unit = "validation examples" if case.data == "digits" else "validation drawings per character"
    return (
        f"While the weights were learned, one for every training example, the loss of the {held}"
        f" {unit} fell from {losses[0]:.2f} to {losses[-1]:.2f}; the AUC was highest after update"
        f" {best + 1} of {len(aucs)} ({aucs[best]:.3f}; {aucs[-1]:.3f} after the last). Where it"
        " falls again, the weights fit the few validation examples rather than the labels; a"
        " loss that ranks examples has no such freedom."
    )


def _mean(cells: Sequence[dict[str, Any]], field: str) -> str:
    values = [cell[field] for cell in cells if cell.get(field) is not None]
    if not values:
        return "-"
    return f"{fmean(values):.0f}" if field == "spent" else markdown.mean(values)


def _head(sizes: Sizes) -> str:
    return f"""Of the training labels a share is replaced at random. Each training example gets a
weight, the sigmoid of a score, and the scores are learned by {sizes.updates} updates (Adam,
{UPDATE_SIZE:g}) along the exact gradient of the loss of the clean validation examples
after a whole training of {sizes.steps} steps (SGD with momentum {MOMENTUM:g}, learning rate
{LR:g}, minibatches of {sizes.batch}, {SLOTS} kept states by Binomial); every
update starts from another initialisation with other minibatches. Gradients are not cut;
{RETURN} Networks have one hidden layer of {HIDDEN} units (tanh), float32.

Small-loss selection is given the same budget: a first training (on the training examples, the
validation examples or both) gives each training example a loss, and those of the smallest are kept
for a second training; what is trained on first, for how long and how many are kept is chosen by
random search, by the validation loss. {budget.RULE}

Accuracies are means over new trainings ({sizes.retrainings} each) from initialisations and orders
of minibatches that no contender has seen, on test examples (of digits: by other writers), and over
draws of the examples and of the wrong labels ({sizes.seeds}; ± standard deviation). AUC and F1 say
how well wrong labels are found: AUC by the ranking, F1 by the examples of weight below one half, or
not kept. "No training examples" with the validation examples is training on those alone."""
