"""A method trained on one setting and tested on new tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import meta_training, methods
from benchmarks.harness.outline import Cell
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import Inner, Problem
from benchmarks.problems import functions, models
from benchmarks.problems.functions import Regression
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, move


@dataclass(frozen=True)
class Setting:
    """One panel of the paper's Figure 2."""

    family: str  # "cosmixture" or "alpine"
    shots: int  # training points per task, and as many validation points
    protocol: str  # "code" or "text" (see `benchmarks.problems.episodes`)
    seeds: tuple[int, ...] = (0,)  # seeds of initialisation and meta-batches

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        return f"{self.family} {self.shots}shot-{self.shots}val ({self.protocol})"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    settings: tuple[Setting, ...]  # the panels
    methods: tuple[str, ...]  # names of methods
    updates: int  # meta-updates
    steps: dict[int, int]  # inner steps of a setting by its number of shots (MAML takes a tenth)
    epochs: int  # epochs of the meta-test with Adam
    every: int  # epochs and steps between two points of a curve
    compile: str | None  # how kernels are run


_ALL = (*methods.PAPER, *methods.OTHERS)

SIZES = {
    Preset.SMOKE: Sizes(
        (Setting("cosmixture", 10, "code"),), ("a-maml", "maml", "comln"), 2, {10: 10}, 4, 2, None
    ),
    Preset.QUICK: Sizes(
        (Setting("cosmixture", 20, "code"), Setting("alpine", 20, "text")),
        _ALL, 40, {20: 40}, 100, 20, "trace",
    ),
    Preset.PAPER: Sizes(
        (
            Setting("cosmixture", 50, "code", (0, 1, 2)),
            Setting("cosmixture", 100, "code"),
            Setting("alpine", 50, "code"),
            Setting("alpine", 100, "code"),
        ),
        methods.PAPER, 5000, {50: 200, 100: 500}, 1000, 10, "inductor",
    ),
}  # fmt: skip


PROBLEM = Problem(functions.MODEL, models.half_mean_square)
LR = 0.01
META_BATCH = 5
DTYPE = torch.float32
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per setting, seed and method."""
    return [
        Cell(key(setting, seed, name), partial(_compute, settings, sizes, setting, seed, name))
        for setting in sizes.settings
        for seed in setting.seeds
        for name in sizes.methods
    ]


def folder(settings: Settings, sizes: Sizes, cell: str) -> Path:
    """Where a run keeps its checkpoint."""
    return meta_training.checkpoint(settings.store, cell, REVISION, sizes)


def key(setting: Setting, seed: int, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} seed={seed} {name}"


@cache
def episodes(setting: Setting) -> Regression:
    """The data of a setting."""
    return Regression(setting.family, setting.protocol, setting.shots)


def held_out(data: Regression, device: torch.device) -> tuple[Batch, Batch]:
    """What the test tasks adapt to, and where they are evaluated."""
    return move((data.held_out_support(), data.held_out_grid()), device, DTYPE)


def inner(sizes: Sizes, setting: Setting, name: str) -> Inner:
    """The inner optimisation: MAML takes a tenth of the steps, as in the paper."""
    steps = sizes.steps[setting.shots]
    if name in methods.TENTH:
        steps //= 10
    return Inner(LR, max(1, steps), states=steps, compile=sizes.compile)


def _compute(
    settings: Settings, sizes: Sizes, setting: Setting, seed: int, name: str
) -> dict[str, Any]:
    data, device = episodes(setting), settings.device
    tasks = move(data.train_batch(range(data.episodes)), device, DTYPE)
    method = methods.build(name, PROBLEM, inner(sizes, setting, name), on_failure="skip")
    params = move(PROBLEM.model.init(seed), device, DTYPE)
    place = folder(settings, sizes, key(setting, seed, name))
    pool = odeopt.TaskPool(*tasks, META_BATCH, seed)
    trained = meta_training.train(method, params, pool, sizes.updates, place)
    support, test = held_out(data, device)
    adapted = method.adapt(trained.params, support, trained.hparams)
    own = meta_training.evaluate(error, [adapted], test)[0]
    descent = meta_training.adapt_by_descent(
        PROBLEM, trained.params, support, LR, sizes.steps[setting.shots], sizes.every, sizes.compile
    )
    adam = meta_training.adapt_by_adam(PROBLEM, trained.params, support, sizes.epochs, sizes.every)
    return {
        "training": trained.record,
        "own": own.tolist(),
        "gd": _curve(meta_training.evaluate(error, descent, test), sizes.every),
        "adam": _curve(meta_training.evaluate(error, adam, test), sizes.every),
    }


def error(params: Parameters, batch: Batch) -> Tensor:
    """NRMSE of one task: targets are in units of the standard deviation over all tasks."""
    return (PROBLEM.model.apply(params, batch.x) - batch.y).square().mean().sqrt()


def _curve(errors: Tensor, every: int) -> dict[str, Any]:
    """The mean and standard deviation over the tasks at each point, and the tasks at the end."""
    return {
        "epochs": [every * k for k in range(len(errors))],
        "mean": errors.mean(1).tolist(),
        "std": errors.std(1, correction=0).tolist(),
        "final": errors[-1].tolist(),
    }
