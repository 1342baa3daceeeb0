"""One cell: a method trained on one setting and tested on new tasks."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import meta_training, methods
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.methods import Inner, Problem
from benchmarks.problems import losses, models
from benchmarks.problems.episodes import Regression
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch
from benchmarks.regression.sizes import Setting, Sizes

PROBLEM = Problem(models.mlp([2, 32, 32, 1]), losses.half_mean_square)
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
    """Where a run keeps its checkpoint: another one whenever what it computes changes."""
    return settings.store.cell_path(f"{cell} {REVISION} {sizes}").with_suffix("")


def key(setting: Setting, seed: int, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} seed={seed} {name}"


@cache
def episodes(setting: Setting) -> Regression:
    """The data of a setting."""
    return Regression(setting.family, setting.protocol, setting.shots)


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
    tasks = data.train_batch(range(data.episodes)).to(device, DTYPE)
    method = methods.build(name, PROBLEM, inner(sizes, setting, name), on_failure="skip")
    params = {k: v.to(device, DTYPE) for k, v in PROBLEM.model.init(seed).items()}
    place = folder(settings, sizes, key(setting, seed, name))
    pool = meta_training.pool(tasks, META_BATCH, seed)
    trained = meta_training.train(method, params, pool, sizes.updates, place)
    support, test = (b.to(device, DTYPE) for b in (data.held_out_support(), data.held_out_grid()))
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
