"""A method trained in one setting and tested on new classes; and what kinks do."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import budget, meta_training, methods
from benchmarks.few_shot_images.sizes import (
    Contender,
    Kinks,
    Setting,
    Sizes,
    divided,
    episodes,
    problem,
)  # fmt: skip
from benchmarks.few_shot_images.training import Metered, train
from benchmarks.harness.outline import Cell
from benchmarks.harness.registry import Settings
from benchmarks.methods import Inner
from benchmarks.problems.few_shot import Feed
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Batch, move, stack
from odeopt.solver import Solver
from odeopt.testing import relative_error
from odeopt.tools.tree import flat, ravel

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


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """The kinks, then one cell per setting for the untrained net and one per contender."""
    chosen: list[Cell] = []
    if sizes.kinks is not None:
        measure = partial(_kinks, settings, sizes.settings[0], sizes.kinks)
        chosen = [Cell(kink_key(name), partial(measure, name)) for name in sizes.kinks.activations]
    for setting in sizes.settings:
        chosen.append(Cell(key(setting, UNTRAINED), partial(_untrained, settings, sizes, setting)))
        chosen += [
            Cell(key(setting, one.name), partial(_trained, settings, sizes, setting, one))
            for one in setting.contenders
        ]
    return chosen


def key(setting: Setting, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} {name}"


def initial(settings: Settings, setting: Setting) -> Parameters:
    """The initialisation that meta-training starts with."""
    return move(problem(setting).model.init(SEED), settings.device, DTYPE)


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


def _untrained(settings: Settings, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    adapt, params = _descent(setting, Contender("maml"), sizes), initial(settings, setting)
    _, split = divided(setting, settings.data)
    return {
        "accuracy": accuracies(settings, setting, "test", sizes.tests, adapt, params, ()),
        "classes": [len(split.train), len(split.validation), len(split.test)],
        "shared_classes": len(set(split.train) & (set(split.test) | set(split.validation))),
    }


def _trained(settings: Settings, sizes: Sizes, setting: Setting, one: Contender) -> dict[str, Any]:
    protocol = setting.protocol
    what = (key(setting, one.name), REVISION, protocol, setting.length, setting.looks)
    place = meta_training.checkpoint(settings.store, what, sizes.compile)
    tasks = episodes(setting, settings.data, "train", protocol.tasks)
    feed = Feed(tasks, settings.device, DTYPE)
    method = build(setting, one, inner(setting, one, sizes), sizes.flow_compile)
    price = partial(budget.of_update, one.method, outer=setting.queries / setting.shots)
    metered, start = Metered(method, feed, price, place), initial(settings, setting)
    adapt = _descent(setting, one, sizes)
    if one.method in OWN:
        adapt = build(setting, one, inner(setting, one, sizes, test=True)).adapt

    def look(params: Parameters, hparams: Any) -> dict[str, Any]:
        seen = accuracies(settings, setting, "look", setting.looks, adapt, params, hparams)
        return {"accuracy": seen}

    params, hparams, record = train(
        metered, start, place, setting.length, SHARES, look, protocol.clip
    )  # fmt: skip
    end = accuracies(settings, setting, "test", sizes.tests, adapt, params, hparams)
    return {"training": {**record, "sampling_seconds": feed.waited}, "accuracy": end}


def accuracies(
    settings: Settings, setting: Setting, part: str, count: int, adapt: Any,
    params: Parameters, hparams: Any,
) -> list[float]:  # fmt: skip
    """The accuracy on each of so many tasks; chance where the adaptation diverged.

    How many are tested at a time depends on the device and the size of the pictures.
    """
    together = min(100 if settings.device.type == "cuda" else 25, count)
    if settings.device.type != "cuda" and divided(setting, settings.data)[0].shape[-1] > LARGE:
        together = 1
    tasks = episodes(setting, settings.data, part, together)
    feed, seen = Feed(tasks, settings.device, DTYPE), list[float]()
    score = partial(accuracy, problem(setting))
    for index in range(math.ceil(count / together)):
        batch = feed(index)
        adapted = adapt(params, batch.train, hparams)
        seen += meta_training.evaluate(score, [adapted], batch.validation)[0].tolist()
    return seen[:count]


def accuracy(problem: Problem, params: Parameters, batch: Batch) -> Tensor:
    """The share of right labels in one task."""
    return (problem.model.apply(params, batch.x).argmax(-1) == batch.y).to(batch.x.dtype).mean()


def _descent(setting: Setting, one: Contender, sizes: Sizes) -> Any:
    """Gradient descent from the learned initialisation: `adapt(params, support, hparams)`."""
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
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(problem.loss), adjoint=odeopt.FirstOrderAdjoint()
    )  # fmt: skip
    x = support.x[0].contiguous(memory_format=torch.channels_last)
    grid = odeopt.TimeGrid.from_lr(chosen.lr, chosen.steps)
    try:
        with torch.no_grad():
            adapted = opt.solve(params, Batch(x, support.y[0]), grid).params
    except odeopt.DivergenceError:
        adapted = {name: torch.full_like(leaf, torch.nan) for name, leaf in params.items()}
    return stack([adapted])


WIDTHS = (1e-3, 1e-5, 1e-7)
"""Of the central differences, relative to the norm of the initialisation."""


def kink_key(activation: str) -> str:
    """The key of a cell."""
    return f"kinks {activation}"


def _kinks(settings: Settings, setting: Setting, sizes: Kinks, activation: str) -> dict[str, Any]:
    """Distances between gradients of the mean validation loss, relative, in float64."""
    setting = replace(setting, activation=activation)
    protocol, steps = setting.protocol, sizes.steps
    tasks = episodes(setting, settings.data, "test", sizes.tasks)
    batch = tasks.finish(tasks.draw(0), settings.device, torch.float64)
    own, few, horizon = problem(setting), protocol.steps, protocol.lr * protocol.steps
    params = move(own.model.init(0), settings.device, torch.float64)
    start, layout = ravel(params, "params")

    def flow(solver: Solver, steps: int) -> odeopt.InnerLoop:
        opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), solver)
        return odeopt.InnerLoop(opt, own.loss, odeopt.TimeGrid.uniform(horizon, steps))

    def gradient(method: odeopt.Method) -> Tensor:
        return flat(method(params, batch).grads.params)

    def a_maml(states: int) -> Tensor:
        """On so many states, with a tight forward solve; NaN where it is refused."""
        tight = odeopt.DormandPrince(rtol=1e-5, atol=1e-7)
        inner = Inner(horizon / states, states, states)
        try:
            return gradient(methods.build("a-maml", own, inner, solver=tight))
        except odeopt.StabilityError:
            return torch.full_like(start, torch.nan)

    def mismatch(along: Tensor, width: float) -> float:
        """How far the slope along a gradient is from a central difference, relative to that."""
        finest, reach = flow(odeopt.RK4(), steps[-1]), width * start.norm()
        direction = along / along.norm()
        ahead, behind = (
            finest.evaluate(layout.unflatten(start + sign * reach * direction), batch)
            for sign in (1, -1)
        )
        slope = (ahead.mean() - behind.mean()) / (2 * reach)
        return (abs(along.norm() - slope) / abs(slope)).item()

    with warnings.catch_warnings():  # of kinks, which are what is measured
        warnings.simplefilter("ignore", odeopt.OdeoptWarning)
        *coarser, best = (gradient(flow(odeopt.RK4(), n)) for n in steps)
        return {
            "horizon": horizon,
            "descent_steps": few,
            "descent": relative_error(gradient(flow(odeopt.Euler(), few)), best),
            "coarser": [relative_error(one, best) for one in coarser],
            "a_maml": [relative_error(a_maml(states), best) for states in (few, steps[-1])],
            "differences": [mismatch(best, width) for width in WIDTHS],
        }
