"""Why one method is ahead of A-MAML: its gradient, its objective, or the way there.

Every method's initialisation is scored by the objective of A-MAML, the validation loss of training
tasks after gradient descent; then the best of them is trained on, by A-MAML and by its own method.
"""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

import torch

import odeopt
from benchmarks import meta_training, methods
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.harness import markdown
from benchmarks.harness.outline import Cell
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import LABELS
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Task, move
from benchmarks.regression import cells as runs
from benchmarks.regression.cells import Setting, Sizes
from odeopt.outer.run_folder import CHECKPOINT, Checkpoint

UPDATES = {Preset.SMOKE: 2, Preset.PAPER: 500}
"""For how many meta-updates the best initialisation is trained on, by preset."""

EPISODES = 200
"""The training episodes on which initialisations are scored."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per setting, for its first seed; it needs the checkpoints of the methods' cells."""
    if settings.preset not in UPDATES:
        return []
    return [
        Cell(key(setting), partial(_compute, settings, sizes, setting))
        for setting in sizes.settings
    ]


def key(setting: Setting) -> str:
    """The key of a cell."""
    return runs.key(setting, setting.seeds[0], "diagnosis")


def section(cell: dict[str, Any] | None) -> str:
    """What the cell says, for the report."""
    if cell is None:
        return ""
    rows = [[LABELS[name], f"{value:.4f}"] for name, value in cell["objective"].items()]
    rows.append(["(before training)", f"{cell['untrained']:.4f}"])
    best, start = LABELS[cell["best"]], fmean(cell["start"])
    ends = {name: fmean(errors) for name, errors in cell["continued"].items()}
    lines = [
        "A-MAML's own objective, the validation loss of training tasks after gradient descent, at"
        " each method's initialisation (first seed):",
        markdown.table(["initialisation of", "A-MAML's objective"], rows),
        f"Trained on from the initialisation of {best} for {cell['updates']} meta-updates more,"
        f" the test error after gradient descent goes from {start:.3f} to"
        f" {ends['a-maml']:.3f} by A-MAML and to {ends[cell['best']]:.3f} by {best}"
        f" (A-MAML below: p = {cell['p']:.2g}, paired over tasks)." + _meaning(cell),
    ]
    return "\n\n".join(lines)


def _meaning(cell: dict[str, Any]) -> str:
    own, other = cell["objective"]["a-maml"], cell["objective"][cell["best"]]
    if other >= own or cell["updates"] < UPDATES[Preset.PAPER]:
        return ""
    best = LABELS[cell["best"]]
    text = (
        f" A-MAML has not reached the minimum of what it minimises: {best} finds lower values of it"
        " from the same start, with as many updates of the same outer optimiser."
    )
    if fmean(cell["continued"]["a-maml"]) >= fmean(cell["start"]):
        return text
    if cell["p"] < LEVEL:
        more = (
            f"further than those of {best}: it is the way there that is slow, not the gradient"
            " that is wrong."
        )
    elif cell["p"] > 1 - LEVEL:
        more = f"but less than those of {best}."
    else:
        more = f"about as far as those of {best}."
    return f"{text} From there A-MAML's updates lower the test error as well, {more}"


def _compute(settings: Settings, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    data, device, seed = runs.episodes(setting), settings.device, setting.seeds[0]
    trained = {
        name: _initialisation(settings, sizes, setting, name)
        for name in sizes.methods
        if name != "comln"  # it learns a horizon beside, so that its start alone means little
    }
    some = move(data.train_batch(range(min(EPISODES, data.episodes))), device, runs.DTYPE)
    score = partial(_objective, some, sizes.steps[setting.shots])
    objective = {name: score(params) for name, params in trained.items()}
    best = min((name for name in objective if name != "a-maml"), key=lambda name: objective[name])
    start, updates = trained[best], UPDATES[settings.preset]
    tasks = move(data.train_batch(range(data.episodes)), device, runs.DTYPE)
    continued = {
        name: _continue(start, tasks, updates, name, sizes, setting) for name in ("a-maml", best)
    }
    errors = {name: _test(setting, sizes, settings, p) for name, p in continued.items()}
    untrained = move(runs.PROBLEM.model.init(seed), device, runs.DTYPE)
    return {
        "objective": objective,
        "untrained": score(untrained),
        "best": best,
        "updates": updates,
        "start": _test(setting, sizes, settings, start),
        "continued": errors,
        "p": p_value_above(errors[best], errors["a-maml"]),
    }


def _initialisation(settings: Settings, sizes: Sizes, setting: Setting, name: str) -> Parameters:
    """What a method has learned, from its checkpoint."""
    folder = runs.folder(settings, sizes, runs.key(setting, setting.seeds[0], name))
    _, stored = Checkpoint.read(folder / CHECKPOINT)
    names = runs.PROBLEM.model.init(0)
    return {name: stored.tensors[f"params[{name!r}]"].to(settings.device) for name in names}


def _objective(tasks: Task, steps: int, params: Parameters) -> float:
    adapted = meta_training.adapt_by_descent(
        runs.PROBLEM, params, tasks.train, runs.LR, steps, steps
    )[-1]
    return torch.func.vmap(runs.PROBLEM.loss)(adapted, tasks.validation).mean().item()


def _continue(
    start: Parameters, tasks: Task, updates: int, name: str, sizes: Sizes, setting: Setting
) -> Parameters:
    inner = runs.inner(sizes, setting, name)
    method = methods.build(name, runs.PROBLEM, inner, on_failure="skip")
    pool = odeopt.TaskPool(*tasks, runs.META_BATCH, setting.seeds[0])
    params = {k: v.clone() for k, v in start.items()}
    return meta_training.train(method, params, pool, updates, None).params


def _test(setting: Setting, sizes: Sizes, settings: Settings, params: Parameters) -> list[float]:
    """The error of each test task after gradient descent."""
    data, steps = runs.episodes(setting), sizes.steps[setting.shots]
    support, test = runs.held_out(data, settings.device)
    adapted = meta_training.adapt_by_descent(runs.PROBLEM, params, support, runs.LR, steps, steps)
    return meta_training.evaluate(runs.error, adapted[-1:], test)[0].tolist()
