"""The cells: contests on digits, and the hypergradient of ridge regression."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import Any

import torch

import odeopt
from benchmarks.bilevel.hyperparameters import contenders
from benchmarks.bilevel.hyperparameters.contenders import Found
from benchmarks.bilevel.hyperparameters.sizes import Sizes
from benchmarks.bilevel.hyperparameters.training import MODEL, Training
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems import classification, ridge
from benchmarks.problems.classification import Split
from odeopt.testing import relative_error

UNSEEN = 10**9
"""Seeds of the retrainings begin here: no contender has seen them."""

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
    split = _split(sizes, seed).to(settings.device, torch.float32)
    training = Training(split, rule, sizes.steps, sizes.batch, sizes.compile)
    found: dict[str, Found] = {
        "entry": contenders.by_gradient(training, sizes.updates, per_entry=True),
        "tensor": contenders.by_gradient(training, sizes.updates, per_entry=False),
    }
    allowed = max(one.spent for one in found.values())
    for name, draw in (("few", contenders.draw_few), ("all", contenders.draw_all)):
        found[name] = contenders.by_search(training, allowed, draw, seed)
    middle = Found(contenders.middle(training, per_entry=False), 0, {})
    values = {name: _judge(training, one, sizes) for name, one in found.items()}
    return {**values, "middle": _judge(training, middle, sizes), **_seconds(training)}


def _split(sizes: Sizes, seed: int) -> Split:
    """Three sets by the same writers: what is good for validation is then good for the test."""
    whole = classification.split_digits(sizes.train, sizes.validation + sizes.test, seed)
    chosen = torch.arange(sizes.validation + sizes.test).split([sizes.validation, sizes.test])
    validation, test = (classification.take(whole.validation, part) for part in chosen)
    return Split(whole.train, validation, test)


def _judge(training: Training, found: Found, sizes: Sizes) -> dict[str, Any]:
    """Test losses and accuracies of new trainings with what was found."""
    losses: list[float] = []
    accuracies: list[float] = []
    test = training.split.test
    for index in range(sizes.retrainings):
        try:
            params = training.train(found.choice, UNSEEN + index)
        except odeopt.DivergenceError:
            losses.append(float("inf"))
            accuracies.append(0.0)
            continue
        losses.append(classification.mean_loss(MODEL)(params, test).item())
        accuracies.append(classification.accuracy(MODEL, params, test))
    rates = training.rates(found.choice.knots)
    return {
        "losses": losses, "accuracies": accuracies, "spent": found.spent,
        "rates": [rates[index].item() for index in (0, training.steps // 2, -1)],
        **found.details,
    }  # fmt: skip


def _seconds(training: Training) -> dict[str, float]:
    """How long a gradient takes, in trainings: the median of three, timed in turn."""
    choice = contenders.middle(training, per_entry=False)
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
