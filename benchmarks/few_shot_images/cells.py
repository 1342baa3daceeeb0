"""One cell: a method trained in one setting and tested on new classes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import meta_training, methods
from benchmarks.few_shot_images import costs, kinks
from benchmarks.few_shot_images.data import Tasks
from benchmarks.few_shot_images.nets import problem
from benchmarks.few_shot_images.sizes import Contender, Setting, Sizes
from benchmarks.few_shot_images.training import Metered, Training
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.methods import Inner, Problem
from benchmarks.problems.feed import Feed
from benchmarks.problems.few_shot import Episodes
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch

DTYPE = torch.float32
SEED = 0
"""Of the initialisation."""

UNTRAINED = "untrained"
SHARES = (0.25, 0.5, 0.75)
"""Of meta-training, after which the accuracy is looked at on a few tasks."""

LARGE = 50
"""Pixels in a row from which on a CPU tasks are tested one by one, which is then faster."""

OWN = ("comln", "anil", "meta-sgd")
"""Methods whose learned adaptation is part of what they learn: they are tested with it."""

SOLVER = odeopt.DormandPrince(rtol=1e-3, atol=1e-5)
"""A-MAML's. At its default of 1e-5 it needs ten times as many steps across the kinks of ReLU."""

REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """The kinks, then one cell per setting for the untrained net and one per contender."""
    found = [] if sizes.kinks is None else kinks.cells(settings, sizes.settings[0], sizes.kinks)
    for setting in sizes.settings:
        found.append(Cell(key(setting, UNTRAINED), partial(_untrained, settings, sizes, setting)))
        found += [
            Cell(key(setting, one.name), partial(_trained, settings, sizes, setting, one))
            for one in setting.contenders
        ]
    return found


def key(setting: Setting, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} {name}"


def initial(settings: Settings, setting: Setting) -> Parameters:
    """The initialisation that meta-training starts with."""
    params = problem(setting).model.init(SEED)
    return {name: leaf.to(settings.device, DTYPE) for name, leaf in params.items()}


def inner(setting: Setting, one: Contender, sizes: Sizes, test: bool = False) -> Inner:
    """The inner optimisation in meta-training, or at the meta-test.

    With a horizon of its own it is the same in both: steps of the protocol's learning rate, or of
    a shorter one if they do not make up the horizon.
    """
    protocol = setting.protocol
    lr, steps = protocol.lr, protocol.test_steps if test else protocol.steps
    if one.horizon is not None:
        steps = math.ceil(round(one.horizon / lr, 6))
        lr = one.horizon / steps
    return Inner(lr, steps, states=steps, compile=None if test else sizes.compile)


def build(
    setting: Setting, one: Contender, chosen: Inner, flow_compile: str | None = None
) -> odeopt.Method:
    """The method of a contender; COMLN's kernels are run as `flow_compile` says."""
    own: dict[str, Any] = {}
    if one.method.startswith("imaml"):
        own["strength"] = setting.protocol.strength
    elif one.method == "a-maml":
        own["solver"] = SOLVER
    elif one.method == "comln":
        own |= {"solver": odeopt.Adaptive(rtol=1e-3, atol=1e-5), "compile": flow_compile}
    return methods.build(one.method, problem(setting), chosen, on_failure="skip", **own)


def folder(settings: Settings, sizes: Sizes, setting: Setting, one: Contender) -> Path:
    """Where a run keeps its checkpoint: another one whenever what it computes changes."""
    what = (key(setting, one.name), REVISION, setting.protocol, setting.length, setting.looks)
    return settings.store.cell_path(f"{what} {sizes.compile}").with_suffix("")


def _untrained(settings: Settings, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    tasks = Tasks(setting, settings.data)
    adapt = _descent(setting, Contender("maml"), sizes)
    test = tasks.test(tested_together(settings, tasks, sizes.tests))
    found = accuracies(settings, setting, test, sizes.tests, adapt, initial(settings, setting), ())
    split = tasks.split
    return {
        "accuracy": found,
        "classes": [len(split.train), len(split.validation), len(split.test)],
        "shared_classes": len(set(split.train) & (set(split.test) | set(split.validation))),
    }


def _trained(settings: Settings, sizes: Sizes, setting: Setting, one: Contender) -> dict[str, Any]:
    tasks = Tasks(setting, settings.data)
    place = folder(settings, sizes, setting, one)
    feed = Feed(tasks.training(), settings.device, DTYPE)
    method = build(setting, one, inner(setting, one, sizes), sizes.flow_compile)
    price = partial(costs.of_update, one.method, outer=setting.queries / setting.shots)
    training = Training(
        Metered(method, feed, price, place), initial(settings, setting), place,
        setting.protocol.clip,
    )  # fmt: skip
    adapt = _adaptation(setting, one, sizes)
    sees = tasks.looks(tested_together(settings, tasks, setting.looks))

    def look(params: Parameters, hparams: Any) -> dict[str, Any]:
        found = accuracies(settings, setting, sees, setting.looks, adapt, params, hparams)
        return {"accuracy": found}

    trained = training.run(setting.length, SHARES, look)
    test = tasks.test(tested_together(settings, tasks, sizes.tests))
    found = accuracies(settings, setting, test, sizes.tests, adapt, trained.params, trained.hparams)
    record = {**trained.record, "sampling_seconds": feed.waited}
    return {"training": record, "accuracy": found}


def accuracies(
    settings: Settings, setting: Setting, episodes: Episodes, count: int, adapt: Any,
    params: Parameters, hparams: Any,
) -> list[float]:  # fmt: skip
    """The accuracy on each of so many tasks; chance where the adaptation diverged."""
    feed, found = Feed(episodes, settings.device, DTYPE), list[float]()
    score = partial(accuracy, problem(setting))
    for index in range(math.ceil(count / episodes.tasks)):
        batch = feed(index)
        adapted = adapt(params, batch.train, hparams)
        found += meta_training.evaluate(score, [adapted], batch.validation)[0].tolist()
    return found[:count]


def accuracy(problem: Problem, params: Parameters, batch: Batch) -> Tensor:
    """The share of right labels in one task."""
    return (problem.model.apply(params, batch.x).argmax(-1) == batch.y).to(batch.x.dtype).mean()


def _adaptation(setting: Setting, one: Contender, sizes: Sizes) -> Any:
    """How a contender is tested: `adapt(params, support, hparams)`."""
    if one.method in OWN:
        return build(setting, one, inner(setting, one, sizes, test=True)).adapt
    return _descent(setting, one, sizes)


def _descent(setting: Setting, one: Contender, sizes: Sizes) -> Any:
    """Gradient descent from the learned initialisation."""
    chosen, tested = inner(setting, one, sizes, test=True), problem(setting)

    def adapt(params: Parameters, support: Batch, hparams: Any) -> Parameters:
        del hparams
        if len(support.x) == 1:
            return _descend_alone(tested, params, support, chosen)
        return meta_training.adapt_by_descent(
            tested, params, support, chosen.lr, chosen.steps, chosen.steps
        )[-1]

    return adapt


def _descend_alone(
    problem: Problem, params: Parameters, support: Batch, chosen: Inner
) -> Parameters:
    """The same on one task, whose pictures lie in the order in which a CPU convolves fastest."""
    field, adjoint = odeopt.GradientFlow(problem.loss), odeopt.FirstOrderAdjoint()
    opt = odeopt.ODEOptimizer(field, adjoint=adjoint)
    x = support.x[0].contiguous(memory_format=torch.channels_last)
    grid = odeopt.TimeGrid.from_lr(chosen.lr, chosen.steps)
    try:
        with torch.no_grad():
            found = opt.solve(params, Batch(x, support.y[0]), grid).params
    except odeopt.DivergenceError:
        found = {name: torch.full_like(leaf, torch.nan) for name, leaf in params.items()}
    return {name: leaf[None] for name, leaf in found.items()}


def tested_together(settings: Settings, tasks: Tasks, count: int) -> int:
    """How many of `count` tasks are tested at a time."""
    if settings.device.type == "cuda":
        return min(100, count)
    return 1 if tasks.pixels > LARGE else min(25, count)
