"""Learning rates and weight decays by the gradient of validation, against random search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from math import log
from random import Random
from statistics import fmean, median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks import budget
from benchmarks.bilevel import descent
from benchmarks.bilevel.descent import UNSEEN, Evaluation, Outcome, best_of
from benchmarks.harness import markdown, outline
from benchmarks.harness.outline import Cell, Run
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import classification, models, ridge
from benchmarks.problems.classification import Split
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import move, take
from odeopt.testing import relative_error


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    rules: tuple[str, ...]  # names of `RULES`
    seeds: int  # repetitions, each with other examples
    steps: int  # steps of a training
    batch: int  # examples of a minibatch
    train: int  # training examples
    validation: int  # validation examples
    test: int  # test examples, by the same writers as the others
    updates: int  # updates of the hyperparameters
    retrainings: int  # trainings that found hyperparameters are judged by
    ridge_steps: tuple[int, ...]  # inner steps of ridge regression, increasing
    compile: str | None  # how kernels are run


SIZES = {
    Preset.SMOKE: Sizes(("sgd",), 1, 15, 20, 60, 30, 30, 2, 1, (10, 100), None),
    Preset.QUICK: Sizes(
        ("sgd", "adamw"), 1, 120, 50, 200, 500, 500, 15, 3, (10, 30, 100, 300, 1000), "trace"
    ),
    Preset.PAPER: Sizes(
        ("sgd", "adamw"), 5, 500, 50, 200, 500, 500, 50, 5,
        (10, 30, 100, 300, 1000, 3000, 10_000), "inductor",
    ),
}  # fmt: skip


MODEL = models.mlp([64, 32, 10])
SLOTS = 20
KNOTS = 8
"""The schedule is piecewise linear in the logarithm, with this many knots."""


class Rule(NamedTuple):
    """An update rule and where its hyperparameters are looked for."""

    make: Callable[[odeopt.tools.types.Loss, Any], odeopt.UpdateRule]  # of a loss and weight decays
    label: str  # for reports
    rates: tuple[float, float]  # the range of learning rates
    decays: tuple[float, float]  # the range of weight decays


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
    """Hyperparameters, as logarithms: they are positive."""

    knots: Tensor  # of the learning rates, [KNOTS]
    decays: Parameters  # per parameter tensor, [] or of its shape


@dataclass(frozen=True)
class Training:
    """Trainings of the network on a split, in float32."""

    split: Split  # the examples
    rule: str  # a name of `RULES`
    steps: int  # of one training
    batch: int  # examples of a minibatch
    compile: str | None  # how kernels are run

    @cached_property
    def opt(self) -> odeopt.ODEOptimizer:
        """Its hparams are the logarithms of weight decays."""
        chosen = {name: (lambda logs, own=name: logs[own].exp()) for name in MODEL.init(0)}
        return odeopt.ODEOptimizer(
            RULES[self.rule].make(_loss, chosen), checkpoints=odeopt.Binomial(SLOTS),
            compile=self.compile,
        )  # fmt: skip

    def inputs(self, rates: Tensor, seed: int) -> tuple[Parameters, odeopt.Stream, odeopt.TimeGrid]:
        """Random parameters, minibatches and the grid of learning rates."""
        train = self.split.train
        start = move(MODEL.init(seed), train.x.device, train.x.dtype)
        stream = odeopt.Stream.minibatches(train, self.batch, seed)
        return start, stream, odeopt.TimeGrid.from_lr(rates)

    def rates(self, knots: Tensor) -> Tensor:
        """The learning rate of each step, differentiable."""
        where = torch.linspace(0, KNOTS - 1, self.steps, dtype=torch.float64)
        hats = (1 - (where[:, None] - torch.arange(KNOTS)).abs()).clamp(min=0)
        return (hats @ knots.to("cpu", torch.float64)).exp()

    def value_and_grad(self, choice: Choice, seed: int) -> Evaluation:
        """The validation loss after a training, and its gradient."""
        knots = choice.knots.detach().requires_grad_()
        rates = self.rates(knots)
        result = self.opt.value_and_grad(_loss)(
            *self.inputs(rates.detach(), seed), self.split.validation, choice.decays
        )
        (along,) = torch.autograd.grad(rates, knots, result.grads.dt.to(rates))
        gradient = Choice(along, result.grads.hparams)
        return Evaluation(result.value.item(), gradient, budget.spent(result.stats))

    @torch.no_grad()
    def train(self, choice: Choice, seed: int) -> Parameters:
        """The trained parameters.

        Raises:
            DivergenceError: They are not finite.
        """
        return self.opt.solve(*self.inputs(self.rates(choice.knots), seed), choice.decays).params

    def validate(self, choice: Choice, seed: int) -> float:
        """The validation loss after a training."""
        return _loss(self.train(choice, seed), self.split.validation).item()


# hyperparameters act through the rule
_loss = classification.mean_loss(MODEL)

UPDATE_SIZE = 0.2
"""The first learning rate of the logarithms (Adam)."""


def by_gradient(training: Training, updates: int, per_entry: bool) -> Outcome:
    """Adam along the exact gradient through whole trainings, from the middle of the ranges.

    Every update has its own initialisation and minibatches. Each entry of a parameter has its own
    weight decay, or each tensor.
    """
    begin = middle_choice(training, per_entry)
    end = descent.descend(begin, training.value_and_grad, updates, UPDATE_SIZE, training.steps)
    details = {"validation losses": end.values, "validation loss": min(end.values)}
    return Outcome(end.best, end.spent, details)


def by_search(
    training: Training, allowed: int, draw: Callable[[Training, Random], Choice], seed: int
) -> Outcome:
    """Random search until the budget is spent; at least one trial."""
    random, trials = Random(seed), max(1, allowed // training.steps)
    choices = (draw(training, random) for _ in range(trials))
    first = middle_choice(training, per_entry=False)
    best, losses = best_of(first, choices, training.validate)
    details = {"validation losses": losses, "validation loss": min(losses), "trials": trials}
    return Outcome(best, trials * training.steps, details)


def draw_few(training: Training, random: Random) -> Choice:
    """Three numbers: the first and the last learning rate, and one weight decay for all."""
    rates, decays = _ranges(training)
    first, last, decay = random.uniform(*rates), random.uniform(*rates), random.uniform(*decays)
    return _choice(training, torch.linspace(first, last, KNOTS), lambda _: decay)


def draw_all(training: Training, random: Random) -> Choice:
    """All knots, and a weight decay for each parameter tensor."""
    rates, decays = _ranges(training)
    knots = torch.tensor([random.uniform(*rates) for _ in range(KNOTS)])
    return _choice(training, knots, lambda _: random.uniform(*decays))


def middle_choice(training: Training, per_entry: bool) -> Choice:
    """The middle of the ranges of the logarithms."""
    rates, decays = (sum(ends) / 2 for ends in _ranges(training))
    middle = _choice(training, torch.full((KNOTS,), rates), lambda _: decays)
    if not per_entry:
        return middle
    shapes = {name: leaf.shape for name, leaf in MODEL.init(0).items()}
    return middle._replace(
        decays={name: leaf.expand(shapes[name]).clone() for name, leaf in middle.decays.items()}
    )


def _ranges(training: Training) -> tuple[tuple[float, float], tuple[float, float]]:
    rule = RULES[training.rule]
    rates, decays = ((log(low), log(high)) for low, high in (rule.rates, rule.decays))
    return rates, decays


def _choice(training: Training, knots: Tensor, decay: Callable[[str], float]) -> Choice:
    like = training.split.train.x
    return Choice(knots, {name: torch.tensor(decay(name)).to(like) for name in MODEL.init(0)})


RIDGE_TRAIN, RIDGE_VALIDATION, RIDGE_LOG = 200, 120, -3.0
"""Patients for training and for validation; the log-strengths are around the last."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One contest per rule and seed, and one cell of ridge regression per number of steps."""
    contests = [
        Cell(contest_key(rule, seed), partial(_contest, settings, sizes, rule, seed))
        for rule in sizes.rules
        for seed in range(sizes.seeds)
    ]
    steps = sizes.ridge_steps
    return contests + [Cell(ridge_key(n), partial(ridge_agreement, n)) for n in steps]


def contest_key(rule: str, seed: int) -> str:
    """The key of a contest."""
    return f"digits {rule} seed={seed}"


def ridge_key(steps: int) -> str:
    """The key of a cell of ridge regression."""
    return f"ridge steps={steps}"


def _contest(settings: Settings, sizes: Sizes, rule: str, seed: int) -> dict[str, Any]:
    """Every contender; the searches are given what the costlier gradient has spent."""
    split = move(_split(sizes, seed), settings.device, torch.float32)
    training = Training(split, rule, sizes.steps, sizes.batch, sizes.compile)
    outcomes: dict[str, Outcome] = {
        "entry": by_gradient(training, sizes.updates, per_entry=True),
        "tensor": by_gradient(training, sizes.updates, per_entry=False),
    }
    allowed = max(one.spent for one in outcomes.values())
    for name, draw in (("few", draw_few), ("all", draw_all)):
        outcomes[name] = by_search(training, allowed, draw, seed)
    middle = Outcome(middle_choice(training, per_entry=False), 0, {})
    values = {name: _judge(training, one, sizes) for name, one in outcomes.items()}
    return {**values, "middle": _judge(training, middle, sizes), **_seconds(training)}


def _split(sizes: Sizes, seed: int) -> Split:
    """Three sets by the same writers: what is good for validation is then good for the test."""
    whole = classification.split_digits(sizes.train, sizes.validation + sizes.test, seed)
    chosen = torch.arange(sizes.validation + sizes.test).split([sizes.validation, sizes.test])
    validation, test = (take(whole.validation, part) for part in chosen)
    return Split(whole.train, validation, test)


def _judge(training: Training, outcome: Outcome, sizes: Sizes) -> dict[str, Any]:
    """Test losses and accuracies of new trainings."""
    losses: list[float] = []
    accuracies: list[float] = []
    for index in range(sizes.retrainings):
        try:
            params = training.train(outcome.choice, UNSEEN + index)
        except odeopt.DivergenceError:
            losses.append(float("inf"))
            accuracies.append(0.0)
            continue
        losses.append(_loss(params, training.split.test).item())
        accuracies.append(classification.accuracy(MODEL, params, training.split.test))
    rates = training.rates(outcome.choice.knots)
    return {
        "losses": losses, "accuracies": accuracies, "spent": outcome.spent,
        "rates": [rates[index].item() for index in (0, training.steps // 2, -1)],
        **outcome.details,
    }  # fmt: skip


def _seconds(training: Training) -> dict[str, float]:
    """How long a gradient takes, in trainings: the median of three, timed in turn."""
    choice = middle_choice(training, per_entry=False)
    ratios: list[float] = []
    for _ in range(3):
        begin = perf_counter()
        training.train(choice, 0)
        middle = perf_counter()
        training.value_and_grad(choice, 0)
        ratios.append((perf_counter() - middle) / (middle - begin))
    return {"gradient in trainings": sorted(ratios)[1]}


def ridge_agreement(steps: int) -> dict[str, Any]:
    """The gradient through so many steps of gradient descent against the closed form."""
    split = ridge.split(RIDGE_TRAIN, RIDGE_VALIDATION, seed=0)
    logs = RIDGE_LOG + torch.linspace(-1, 1, ridge.FEATURES, dtype=torch.float64)
    largest = torch.linalg.eigvalsh(ridge.curvature(split.train, logs))[-1].item()
    grid = odeopt.TimeGrid.from_lr(1 / largest, steps)
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(ridge.inner_loss), checkpoints=odeopt.Binomial(20), compile="trace"
    )
    zeros = torch.zeros(ridge.FEATURES, dtype=torch.float64)
    result = opt.value_and_grad(ridge.outer_loss)(zeros, split.train, grid, split.validation, logs)
    final = opt.solve(zeros, split.train, grid, logs).params
    exact = ridge.hypergradient(split.train, split.validation, logs)
    best = ridge.solution(split.train, logs)
    return {
        "inner": relative_error(final.detach(), best),
        "outer": relative_error(result.grads.hparams, exact),
    }


REVISION = 2

LABELS = {
    "middle": "the middle of the ranges",
    "entry": "gradient, a weight decay per entry",
    "tensor": "gradient, a weight decay per tensor",
    "few": "random search, 3 numbers",
    "all": "random search, every knot and tensor",
}
GRADIENTS, SEARCHES = ("entry", "tensor"), ("few", "all")
AGREES = 1e-6
"""Below this relative error the hypergradient of ridge regression is said to agree."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    done = outline.compute(
        settings, "bilevel --only hyperparameters", REVISION, sizes, cells(settings, sizes)
    )
    errors = [done.cells[ridge_key(steps)] for steps in sizes.ridge_steps]
    loglog(
        settings.store.directory / "ridge.png",
        Labels("ridge regression", "inner steps", "relative error"),
        [Series("hypergradient", sizes.ridge_steps, [cell["outer"] for cell in errors]),
         Series("parameters", sizes.ridge_steps, [cell["inner"] for cell in errors])],
    )  # fmt: skip
    sections = [_head(sizes), *(_section(done, rule, sizes) for rule in sizes.rules)]
    outline.write(settings, "Hyperparameters by gradient and by random search", done,
                  [*sections, _ridge(errors, sizes)])  # fmt: skip


def _section(run: Run, rule: str, sizes: Sizes) -> str:
    draws = [run.cells[contest_key(rule, seed)] for seed in range(sizes.seeds)]
    rows: list[list[markdown.Entry]] = []
    for name, label in LABELS.items():
        own = [cell[name] for cell in draws]
        seen = [one["validation loss"] for one in own if "validation loss" in one]
        counts = [len(one["validation losses"]) for one in own if "validation losses" in one]
        rows.append([
            label, f"{fmean(seen):.3f}" if seen else "-",
            *(markdown.mean([fmean(one[k]) for one in own]) for k in ("losses", "accuracies")),
            f"{fmean(counts):.0f}" if counts else "-", f"{fmean(one['spent'] for one in own):.0f}",
            ", ".join(f"{rate:.3g}" for rate in own[0]["rates"]),
        ])  # fmt: skip
    headers = ["hyperparameters", "validation loss seen", "test loss", "test accuracy", "trainings",
               "budget", "learning rate: first, middle, last"]  # fmt: skip
    ratio = median(cell["gradient in trainings"] for cell in draws)
    return (
        f"## Digits, {RULES[rule].label}\n\n{markdown.table(headers, rows)}\n"
        f"{_verdict(draws)} One gradient took as long as {ratio:.1f} trainings here."
    )


def _verdict(draws: list[dict[str, Any]]) -> str:
    losses = {name: [fmean(cell[name]["losses"]) for cell in draws] for name in LABELS}
    means = {name: fmean(values) for name, values in losses.items()}
    ours, theirs = (min(names, key=means.__getitem__) for names in (GRADIENTS, SEARCHES))
    wins = sum(a < b for a, b in zip(losses[ours], losses[theirs], strict=True))
    best = min(means, key=means.__getitem__)
    return (
        f"The best of the gradient ({LABELS[ours]}) has a test loss of {means[ours]:.3f}, the best"
        f" of random search ({LABELS[theirs]}) {means[theirs]:.3f}; the gradient's is lower in"
        f" {wins} of {len(draws)} draws. The lowest of all is that of: {LABELS[best]}."
    )


def _ridge(errors: list[dict[str, Any]], sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = [
        [str(steps), cell["outer"], cell["inner"]]
        for steps, cell in zip(sizes.ridge_steps, errors, strict=True)
    ]
    last = errors[-1]["outer"]
    agreement = "agrees with" if last < AGREES else "is not yet at"
    return f"""## Diabetes, ridge regression with one strength per feature

The gradient of the validation loss w.r.t. the {ridge.FEATURES} log-strengths, through
gradient descent on the ridge loss from zero, against the closed form at its minimiser (float64).

{markdown.table(["inner steps", "error of the hypergradient", "error of the parameters"], rows)}
After {sizes.ridge_steps[-1]} steps the hypergradient {agreement} the closed form
({markdown.scientific(last)}; agreement means below {AGREES:g}).

![ridge regression](ridge.png)"""


def _head(sizes: Sizes) -> str:
    return f"""Network 64-32-10 (tanh), float32, trained on {sizes.train} digits for {sizes.steps}
steps with minibatches of {sizes.batch}. The hyperparameters are the learning rates of all steps
(piecewise linear in the logarithm, {KNOTS} knots) and weight decays, one per parameter
tensor or one per entry; they are chosen by the loss of {sizes.validation} validation examples.

The gradient contenders make {sizes.updates} updates with Adam ({UPDATE_SIZE:g} on
logarithms) along the exact gradient through whole trainings ({SLOTS} kept states, by
Binomial) from the middle of the ranges in which random search draws, log-uniformly. Random search
draws three numbers (the first and the last learning rate, and one weight decay) or every knot and
tensor's decay, as often as the budget of the costlier gradient allows. Every training has its own
initialisation and minibatches; each contender gives the hyperparameters of the lowest validation
loss that it saw. {descent.RULE} {budget.RULE}

Test losses and accuracies are means over new trainings ({sizes.retrainings} each) from
initialisations and orders of minibatches that no contender has seen, on {sizes.test} other digits
by the same writers, and over draws of the examples ({sizes.seeds}; ± standard deviation)."""
