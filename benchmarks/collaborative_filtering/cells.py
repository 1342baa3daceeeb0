"""A method trained on one setting and tested on new users, or the baselines there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import meta_training, methods
from benchmarks.harness.outline import Cell
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import Inner, Problem
from benchmarks.problems import models, ratings
from benchmarks.problems.models import Parameters
from benchmarks.problems.ratings import SOURCES, MetaTest, RatingBatch, RatingPool, RatingTasks
from benchmarks.problems.tasks import Batch, move

MADE_UP = "made-up"
"""The name of ratings generated here, for a smoke run without data."""


@dataclass(frozen=True)
class Setting:
    """One column of a table of the paper."""

    data: str  # a name in `SOURCES`, or `MADE_UP`
    shots: int  # ratings to adapt to
    validation: int  # ratings for validation in meta-training
    steps: int  # steps of gradient descent; MAML takes a tenth
    at_least: int = 10  # how many of the most rated items a retained user rated at least

    @property
    def split(self) -> str:
        """The data set and the setting, without the steps."""
        return f"{self.data} {self.shots}shot-{self.validation}val"

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        return f"{self.split} {self.steps} steps"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    settings: tuple[Setting, ...]  # the columns
    methods: tuple[str, ...]  # names of methods
    updates: int  # meta-updates
    tests: int  # users for the meta-test
    epochs: int  # epochs of the meta-test with Adam
    every: int  # steps between two points of a curve
    compile: str | None  # how kernels are run


LITERAL = ("movielens-100k", 20)
"""The paper's words taken literally: the classic data set, users with at least 20 ratings."""

_DATA = (("movielens-small-2016", 10), LITERAL, ("movielens-1m", 10), ("jester-1", 10))
_SHOTS = ((10, 15), (20, 30))
_ALL = (*methods.PAPER, *methods.OTHERS)

SIZES = {
    Preset.SMOKE: Sizes(
        (Setting("movielens-small-2016", 10, 15, 10),),
        ("a-maml", "maml", "comln"), 2, 10, 4, 5, None,
    ),
    Preset.QUICK: Sizes(
        (Setting("movielens-small-2016", 10, 15, 50),), _ALL, 100, 100, 100, 10, "trace"
    ),
    Preset.PAPER: Sizes(
        tuple(
            Setting(data, shots, validation, steps, at_least)
            for data, at_least in _DATA
            for steps in (50, 100)
            for shots, validation in _SHOTS
        ),
        methods.PAPER, 2000, 100, 500, 5, "inductor",
    ),
}  # fmt: skip
"""An update of the six methods takes about 0.2 s in all with "inductor" on one core, so that the
preset "paper" takes about an hour in two processes, with --only 10shot and --only 20shot. With
the paper's 5000 updates it would be two and a half."""


def resolve(preset: Preset, folder: Path | None) -> Sizes:
    """The sizes of a preset; a smoke run takes made-up ratings where its data is not there."""
    sizes = SIZES[preset]
    if preset is not Preset.SMOKE:
        return sizes
    settings = tuple(
        s if folder is not None and (folder / SOURCES[s.data].file).is_file()
        else replace(s, data=MADE_UP)
        for s in sizes.settings
    )  # fmt: skip
    return replace(sizes, settings=settings)


PROBLEM = Problem(ratings.MODEL, models.half_mean_square)
LR = 0.01
META_BATCH = 5
DTYPE = torch.float32
SEED = 0
"""Fixes the test users and their ratings, the initialisation and the meta-batches."""

BASELINES = "baselines"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per setting and method, and one per setting for the baselines."""
    return [
        Cell(key(setting, name), partial(compute, settings, sizes, setting, name))
        for setting in sizes.settings
        for (name, compute) in ((BASELINES, _baselines), *((n, _method) for n in sizes.methods))
    ]


def key(setting: Setting, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} {name}"


def divided(setting: Setting, sizes: Sizes, folder: Path | None) -> RatingTasks:
    """The data of a setting."""
    table = _load(setting.data, folder, setting.at_least)
    return RatingTasks(table, setting.shots, setting.validation, sizes.tests, SEED)


@cache
def _load(name: str, folder: Path | None, at_least: int) -> ratings.Ratings:
    return ratings.made_up() if name == MADE_UP else ratings.load(name, folder, at_least)


def _baselines(settings: Settings, sizes: Sizes, setting: Setting, name: str) -> dict[str, Any]:
    """The baselines, the network without meta-training, and what there is to be evaluated."""
    del name
    data = divided(setting, sizes, settings.data)
    test = data.test()
    scores = ratings.baseline_errors(data.train_scores(), test)
    params, moved = move((PROBLEM.model.init(SEED), test), settings.device, DTYPE)
    states = _descend(params, moved.batch(), setting, sizes)
    return {
        "errors": {k: _of_evaluated(e, test) for k, e in scores.items()},
        "untrained": _scores(states[-1], moved),
        "train_users": len(data.train_users),
        "test_users": len(data.test_users),
        "evaluated_users": int(test.evaluated().sum()),
        "held_out": int(test.held_out.known.sum()),
        "unit": data.std,
    }


def _method(settings: Settings, sizes: Sizes, setting: Setting, name: str) -> dict[str, Any]:
    data, device = divided(setting, sizes, settings.data), settings.device
    steps = max(1, setting.steps // 10) if name in methods.TENTH else setting.steps
    inner = Inner(LR, steps, states=steps, compile=sizes.compile)
    method = methods.build(name, PROBLEM, inner, on_failure="skip")
    params = move(PROBLEM.model.init(SEED), device, DTYPE)
    folder = meta_training.checkpoint(settings.store, key(setting, name), REVISION, sizes)
    pool = RatingPool(data, META_BATCH, SEED, device, DTYPE)
    trained = meta_training.train(method, params, pool, sizes.updates, folder)
    test = move(data.test(), device, DTYPE)
    support = test.batch()
    descent = _descend(trained.params, support, setting, sizes)
    epochs = sizes.epochs
    adam = meta_training.adapt_by_adam(PROBLEM, trained.params, support, epochs, epochs)
    return {
        "training": trained.record,
        "gd": _scores(descent[-1], test),
        "own": _scores(method.adapt(trained.params, support, trained.hparams), test),
        "adam": _scores(adam[-1], test),
        "curve": _curve(descent, test, sizes.every),
    }


def _descend(
    params: Parameters, support: Batch, setting: Setting, sizes: Sizes
) -> list[Parameters]:
    return meta_training.adapt_by_descent(PROBLEM, params, support, LR, setting.steps, sizes.every)


def error(params: Parameters, rated: RatingBatch) -> Tensor:
    """The nRMSE of one user: ratings are in units of the training users' standard deviation."""
    return rated.error(PROBLEM.model.apply(params, rated.x))


def _scores(adapted: Parameters, test: MetaTest) -> dict[str, list[float]]:
    """The errors of the users who can be evaluated, and those of all on what was adapted to."""
    held_out, support = (meta_training.evaluate(error, [adapted], part)[0] for part in (
        test.held_out, test.support,
    ))  # fmt: skip
    return {"held_out": _of_evaluated(held_out, test), "adaptation": support.tolist()}


def _curve(states: list[Parameters], test: MetaTest, every: int) -> dict[str, list[float]]:
    """The mean held-out error along the descent."""
    errors = meta_training.evaluate(error, states, test.held_out)[:, test.evaluated()]
    return {"steps": [every * k for k in range(len(errors))], "mean": errors.mean(1).tolist()}


def _of_evaluated(errors: Tensor, test: MetaTest) -> list[float]:
    return errors[test.evaluated()].tolist()
