"""The cells: how well each choice of examples trains, and how well it finds wrong labels."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

import torch
from sklearn.metrics import f1_score, roc_auc_score  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from benchmarks.bilevel.cleaning import contenders, problem
from benchmarks.bilevel.cleaning.contenders import Choice
from benchmarks.bilevel.cleaning.problem import Problem, Training
from benchmarks.bilevel.cleaning.sizes import Case, Sizes
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems.classification import accuracy, join, take

REFERENCES, CONTEST = "references", "contest"
REFERENCE_SETS = ("no training examples", "all training examples", "the clean ones (oracle)")
UNSEEN = 10**9
"""Seeds of the retrainings begin here: no contender has seen them."""


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
    found = folder is not None and (folder / problem.omniglot.FILE).is_file()
    return tuple(case for case in sizes.cases if found or case.data != "omniglot")


def _references(settings: Settings, sizes: Sizes, case: Case, seed: int) -> dict[str, Any]:
    """Test accuracies without any choice: none, all, and the clean examples."""
    given = problem.make(case, sizes, seed, settings.data, settings.device)
    training = Training(given.model, sizes.steps, sizes.batch, sizes.compile)
    count = len(given.train.y)
    sets = {
        REFERENCE_SETS[0]: torch.zeros(count, dtype=torch.bool),
        REFERENCE_SETS[1]: torch.ones(count, dtype=torch.bool),
        REFERENCE_SETS[2]: ~given.wrong,
    }
    return {name: _accuracies(given, training, kept, sizes) for name, kept in sets.items()}


def _contest(settings: Settings, sizes: Sizes, case: Case, seed: int) -> dict[str, Any]:
    """Both contenders; the search is given what the gradient has spent."""
    given = problem.make(case, sizes, seed, settings.data, settings.device)
    training = Training(given.model, sizes.steps, sizes.batch, sizes.compile)
    learned = contenders.learn(given, training, sizes.updates)
    curve = [_auc(given, suspicion) for suspicion in learned.details.pop("suspicions")]
    searched = contenders.search(given, training, learned.spent, seed)
    found = {
        "learned": _judge(given, training, learned, learned.weights, sizes),
        "kept": _accuracies(given, training, learned.weights > 0.5, sizes),
        "searched": _judge(given, training, searched, searched.weights > 0, sizes),
    }
    found["learned"]["aucs"] = curve
    return found


def _judge(
    given: Problem, training: Training, choice: Choice, weights: Tensor, sizes: Sizes
) -> dict[str, Any]:
    return {
        **_accuracies(given, training, weights, sizes),
        "auc": _auc(given, choice.suspicion),
        "f1": float(f1_score(given.wrong.numpy(), choice.accused.cpu().numpy())),
        "spent": choice.spent,
        **choice.details,
    }


def _auc(given: Problem, suspicion: Tensor) -> float:
    return float(roc_auc_score(given.wrong.numpy(), suspicion.cpu().numpy()))


def _accuracies(
    given: Problem, training: Training, chosen: Tensor, sizes: Sizes
) -> dict[str, float | None]:
    """Mean test accuracies of new trainings, without and with the validation examples added.

    Args:
        given: The problem.
        training: How it is trained.
        chosen: A mask of training examples, or their weights.
        sizes: For the number of trainings.
    """
    train, validation = given.train, given.validation
    weights: Tensor | None = None
    both_weights: Tensor | None = None
    if chosen.dtype is torch.bool:
        train = take(train, chosen.to(train.y.device))
    else:
        weights = chosen
        both_weights = torch.cat([chosen, torch.ones_like(validation.x[:, 0])])

    def mean(examples: Any, own: Tensor | None) -> float | None:
        if len(examples.y) == 0:
            return None
        found = [
            accuracy(given.model, training.train(examples, UNSEEN + i, own), given.test)
            for i in range(sizes.retrainings)
        ]
        return fmean(found)

    return {"alone": mean(train, weights), "added": mean(join(train, validation), both_weights)}
