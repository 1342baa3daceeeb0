"""One cell: a method trained on digits and tested on images by other writers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import meta_training, methods
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.runner import Cell
from benchmarks.methods import Inner, Problem
from benchmarks.problems import digits, losses, models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch

WAYS, SHOTS, LR, META_BATCH = 5, 5, 0.1, 5
PROBLEM = Problem(models.mlp([64, 40, WAYS]), losses.cross_entropy)
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        methods: Names of methods.
        updates: Meta-updates.
        steps: Inner steps.
        train_tasks: Meta-training tasks.
        test_tasks: Meta-test tasks.
        compile: How kernels are run.
    """

    methods: tuple[str, ...]
    updates: int
    steps: int
    train_tasks: int
    test_tasks: int
    compile: str | None


ALL = (*methods.PAPER, *methods.OTHERS)
SIZES = {
    Preset.SMOKE: Sizes(("a-maml", "maml", "comln"), 2, 5, 5, 5, None),
    Preset.QUICK: Sizes(ALL, 100, 20, 200, 50, "trace"),
    Preset.PAPER: Sizes(ALL, 2000, 50, 1000, 200, "inductor"),
}


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per method."""
    return [Cell(name, partial(_compute, settings, sizes, name)) for name in sizes.methods]


def _compute(settings: Settings, sizes: Sizes, name: str) -> dict[str, Any]:
    device, dtype = settings.device, torch.float32
    tasks = digits.flatten(digits.tasks(sizes.train_tasks, 0, WAYS, SHOTS, "train"))
    tests = digits.flatten(digits.tasks(sizes.test_tasks, 10**6, WAYS, SHOTS, "test"))
    inner = Inner(LR, sizes.steps, sizes.steps, sizes.compile)
    method = methods.build(name, PROBLEM, inner, on_failure="skip")
    params = {k: v.to(device, dtype) for k, v in PROBLEM.model.init(0).items()}
    folder = settings.store.cell_path(f"{name} {REVISION} {sizes}").with_suffix("")
    pool = meta_training.pool(tasks.to(device, dtype), META_BATCH, seed=0)
    trained = meta_training.train(method, params, pool, sizes.updates, folder)
    support, query = tests.to(device, dtype)
    untrained = method.init_hparams(params)
    states = [method.adapt(p, support, h) for p, h in (
        (params, untrained), (trained.params, trained.hparams),
    )]  # fmt: skip
    before, after = meta_training.evaluate(accuracy, states, query)
    return {"training": trained.record, "before": before.tolist(), "after": after.tolist()}


def accuracy(params: Parameters, batch: Batch) -> Tensor:
    """The share of right labels in one task."""
    return (PROBLEM.model.apply(params, batch.x).argmax(-1) == batch.y).float().mean()
