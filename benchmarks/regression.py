"""Meta-learned regression of 2D functions (the paper's Figure 2).

A method is trained on one setting and tested on new tasks. The diagnosis says why one method is
ahead of A-MAML: its gradient, its objective, or the way there. For it every method's initialisation
is scored by the objective of A-MAML, the validation loss of training tasks after gradient descent;
then the best of them is trained on, by A-MAML and by its own method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import meta_training, methods
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.harness import markdown, outline, plots
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.plots import Curve, Labels
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import LABELS
from benchmarks.problems import functions, models
from benchmarks.problems.functions import Regression
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.published import FIGURE_2
from benchmarks.problems.tasks import Batch, move
from odeopt.outer.run_folder import CHECKPOINT, Checkpoint


@dataclass(frozen=True)
class Setting:
    """One panel of the paper's Figure 2."""

    family: str  # "cosmixture" or "alpine"
    shots: int  # training points per task, and as many validation points
    protocol: str  # "code" or "text" (see `benchmarks.problems.functions`)
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


UPDATES = {Preset.SMOKE: 2, Preset.PAPER: 500}
"""For how many meta-updates the best initialisation is trained on, by preset."""

EPISODES = 200
"""The training episodes on which initialisations are scored."""


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per setting, seed and method; then one diagnosis per setting, for its first seed.

    The diagnosis needs the checkpoints of the methods' cells.
    """
    chosen = [
        Cell(key(setting, seed, name), partial(_method, settings, sizes, setting, seed, name))
        for setting in sizes.settings
        for seed in setting.seeds
        for name in sizes.methods
    ]
    if settings.preset in UPDATES:
        chosen += [
            Cell(diagnosis_key(setting), partial(_diagnosis, settings, sizes, setting))
            for setting in sizes.settings
        ]
    return chosen


def key(setting: Setting, seed: int, name: str) -> str:
    """The key of a cell."""
    return f"{setting.name} seed={seed} {name}"


def diagnosis_key(setting: Setting) -> str:
    """That of a setting's diagnosis."""
    return key(setting, setting.seeds[0], "diagnosis")


@cache
def episodes(setting: Setting) -> Regression:
    """The data of a setting."""
    return Regression(setting.family, setting.protocol, setting.shots)


def _folder(settings: Settings, sizes: Sizes, setting: Setting, seed: int, name: str) -> Path:
    """Where a run keeps its checkpoint."""
    return meta_training.checkpoint(settings.store, key(setting, seed, name), REVISION, sizes)


def _held_out(settings: Settings, setting: Setting) -> tuple[Batch, Batch]:
    """What the test tasks adapt to, and where they are evaluated."""
    data = episodes(setting)
    return move((data.held_out_support(), data.held_out_grid()), settings.device, DTYPE)


def _train(
    settings: Settings, sizes: Sizes, setting: Setting, seed: int, name: str, params: Parameters,
    updates: int, folder: Path | None,
) -> tuple[odeopt.Method, meta_training.Initialisation]:  # fmt: skip
    """A method, and what it learns."""
    inner = methods.inner_of(name, LR, sizes.steps[setting.shots], sizes.compile)
    method = methods.build(name, PROBLEM, inner, on_failure="skip")
    data = episodes(setting)
    tasks = move(data.train_batch(range(data.episodes)), settings.device, DTYPE)
    pool = odeopt.TaskPool(*tasks, META_BATCH, seed)
    return method, meta_training.train(method, params, pool, updates, folder)


def _method(
    settings: Settings, sizes: Sizes, setting: Setting, seed: int, name: str
) -> dict[str, Any]:
    start = move(PROBLEM.model.init(seed), settings.device, DTYPE)
    folder = _folder(settings, sizes, setting, seed, name)
    method, (params, hparams, record) = _train(
        settings, sizes, setting, seed, name, start, sizes.updates, folder
    )
    support, test = _held_out(settings, setting)
    own = meta_training.evaluate(error, [method.adapt(params, support, hparams)], test)[0]
    descent = meta_training.adapt_by_descent(
        PROBLEM, params, support, LR, sizes.steps[setting.shots], sizes.every, sizes.compile
    )
    adam = meta_training.adapt_by_adam(PROBLEM, params, support, sizes.epochs, sizes.every)
    return {
        "training": record,
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


def _diagnosis(settings: Settings, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    seed, steps = setting.seeds[0], sizes.steps[setting.shots]
    data = episodes(setting)
    some = move(data.train_batch(range(min(EPISODES, data.episodes))), settings.device, DTYPE)
    support, test = _held_out(settings, setting)

    def adapt(params: Parameters, support: Batch) -> Parameters:
        return meta_training.adapt_by_descent(PROBLEM, params, support, LR, steps, steps)[-1]

    def score(params: Parameters) -> float:
        adapted = adapt(params, some.train)
        return torch.func.vmap(PROBLEM.loss)(adapted, some.validation).mean().item()

    def errors(params: Parameters) -> list[float]:
        return meta_training.evaluate(error, [adapt(params, support)], test)[0].tolist()

    trained: dict[str, Parameters] = {}  # from the checkpoints
    for name in sizes.methods:
        if name != "comln":  # it learns a horizon beside, so that its start alone means little
            path = _folder(settings, sizes, setting, seed, name) / CHECKPOINT
            leaves = Checkpoint.read(path)[1].tensors
            trained[name] = {
                leaf: leaves[f"params[{leaf!r}]"].to(settings.device)
                for leaf in PROBLEM.model.init(0)
            }
    objective = {name: score(params) for name, params in trained.items()}
    best = min((name for name in objective if name != "a-maml"), key=lambda name: objective[name])
    start, updates = trained[best], UPDATES[settings.preset]
    continued: dict[str, list[float]] = {}
    for name in ("a-maml", best):
        params = {k: v.clone() for k, v in start.items()}
        _, learned = _train(settings, sizes, setting, seed, name, params, updates, None)
        continued[name] = errors(learned.params)
    return {
        "objective": objective,
        "untrained": score(move(PROBLEM.model.init(seed), settings.device, DTYPE)),
        "best": best,
        "updates": updates,
        "start": errors(start),
        "continued": continued,
        "p": p_value_above(continued[best], continued["a-maml"]),
    }


MODES = {"gd": "gradient descent, 0.01", "adam": "Adam, 1e-3"}

Runs = dict[str, list[dict[str, Any]]]
"""The cells of a setting by method, one for each seed."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`.

    Raises:
        IncompleteError: Cells are missing that `settings.only` left out; the report is of the
            seeds of settings that are complete.
    """
    sizes = SIZES[settings.preset]
    chosen = cells(settings, sizes)
    done = outline.compute(settings, "regression", REVISION, sizes, chosen, gaps=True)
    sections, left_out = [_HEAD.format(epochs=sizes.epochs)], list[str]()
    for setting in sizes.settings:
        complete: list[int] = []  # the seeds with a result of every method
        for seed in setting.seeds:
            if all(key(setting, seed, name) in done.cells for name in sizes.methods):
                complete.append(seed)
            else:
                left_out.append(f"{setting.name}, seed {seed}")
        if complete:
            own = replace(setting, seeds=tuple(complete))
            sections.append(_section(done.cells, own, sizes, settings))
    if len(sections) == 1:
        done.check_complete()
    if left_out:
        sections.insert(1, f"**Not run:** {'; '.join(left_out)}.")
    title = "Regression of 2D functions (the paper's Figure 2)"
    outline.write(settings, title, done, sections)


def _section(results: Cells, setting: Setting, sizes: Sizes, settings: Settings) -> str:
    runs = {
        name: [results[key(setting, seed, name)] for seed in setting.seeds]
        for name in sizes.methods
    }
    published = FIGURE_2.get((setting.family, setting.shots), {})
    rows: list[list[Any]] = []
    for name, own in runs.items():
        compared = name != "a-maml" and "a-maml" in runs
        paper = published.get(name)
        rows.append([
            LABELS[name],
            *(_spread([cell[mode]["final"] for cell in own]) for mode in MODES),
            _spread([cell["own"] for cell in own]),
            "" if paper is None else f"{paper:g}",
            " / ".join(f"{_p_above(runs, name, mode):.2g}" for mode in MODES if compared),
            round(sum(cell["training"]["seconds"] for cell in own)),
            sum(cell["training"]["failed_tasks"] for cell in own),
        ])  # fmt: skip
    headers = [
        "method", *MODES.values(), "its own adaptation", "published", "A-MAML above it: p",
        "training s", "failed tasks",
    ]  # fmt: skip
    steps = sizes.steps[setting.shots]
    intro = (
        f"## {setting.name}\n\n{sizes.updates} meta-updates, {len(setting.seeds)} seed(s); T ="
        f" {steps * LR:g}, {steps} steps of gradient descent (MAML, truncated MAML, Meta-SGD"
        f" and ANIL: {max(1, steps // 10)}; MAML-1: 1). A constant prediction scores"
        f" {episodes(setting).constant_rmse():.3f}."
    )
    stopped = {
        f"{LABELS[name]}, seed {seed}": runs[name][place]["training"]["stopped"]
        for place, seed in enumerate(setting.seeds)
        for name in runs
    }
    parts = [
        intro,
        markdown.table(headers, rows),
        _verdict(runs, settings.preset),
        explained(results.get(diagnosis_key(setting))),
        _plots(runs, settings, setting, published),
        meta_training.ended_early(stopped),
    ]
    return "\n\n".join(part for part in parts if part)


def _spread(finals: list[list[float]]) -> str:
    """Mean and standard deviation over the tasks, averaged over seeds; the seeds' own spread."""
    means = [fmean(tasks) for tasks in finals]
    text = f"{fmean(means):.3f} ± {fmean(pstdev(tasks) for tasks in finals):.3f}"
    return text if len(finals) == 1 else f"{text} (seeds ± {pstdev(means):.3f})"


def _p_above(runs: Runs, name: str, mode: str) -> float:
    """That A-MAML is above a method, over tasks; a task's error is its mean over the seeds."""
    first, second = (
        [fmean(task) for task in zip(*(cell[mode]["final"] for cell in runs[method]), strict=True)]
        for method in ("a-maml", name)
    )
    return p_value_above(first, second)


def _verdict(runs: Runs, preset: Preset) -> str:
    """Whether A-MAML is the best, or not significantly worse than the best."""
    if preset is not Preset.PAPER:
        return meta_training.TOO_SHORT
    lines: list[str] = []
    others = [name for name in runs if name != "a-maml"]
    for mode, title in MODES.items():
        above = [LABELS[name] for name in others if _p_above(runs, name, mode) < LEVEL]
        worse = f"is significantly above {', '.join(above)}" if above else "is not above any method"
        lines.append(f"- {title}: the error of A-MAML {worse} (paired over tasks, p < 0.05).")
    return "\n".join(lines)


def explained(cell: dict[str, Any] | None) -> str:
    """What a diagnosis says, for the report."""
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


def _plots(runs: Runs, settings: Settings, setting: Setting, published: dict[str, float]) -> str:
    """Draws a plot for each way to adapt; what shows them."""
    pictures: list[str] = []
    for mode, title in MODES.items():
        lines: list[Curve] = []
        for name, own in runs.items():
            mean = [fmean(point) for point in zip(*(c[mode]["mean"] for c in own), strict=True)]
            epochs = own[0][mode]["epochs"]
            lines.append(Curve(LABELS[name], epochs, mean, published=published.get(name)))
        labels = Labels(f"{setting.name}, {title}", "epochs of the meta-test", "nRMSE")
        file = f"{setting.family}-{setting.shots}-{setting.protocol}-{mode}.png"
        plots.curves(settings.store.directory / file, labels, lines)
        pictures.append(f"![{mode}]({file})")
    return "\n".join(pictures)


_HEAD = """\
The network is the paper's (2-32-32-1, tanh, 1185 parameters), in float32; the loss of every inner
and outer problem is half the mean square. Meta-batches of 5 tasks, Adam with 1e-3 outside. The
error is nRMSE: the root mean square error over the standard deviation of the target over all
tasks; mean ± standard deviation over 100 meta-test tasks. The meta-test adapts to each new task's
training points by gradient descent (as many steps as in training, MAML's ten times as many) and,
as the released code does, by {epochs} epochs of Adam; "its own adaptation" is the method's inner
loop as it was trained. Published numbers are read off the paper's slides at about 1000 epochs of
the latter, with another draw of tasks, an unknown seed and the authors' code: compare orders of
magnitude only. The data protocols "code" and "text" are the constants of the released code and of
the paper's text, which differ. Failed tasks are those whose inner solve diverged, or whose
gradient a guard refused; they are left out of their meta-update. p: one-sided Wilcoxon test, over
tasks, that the error of A-MAML is above the method's (gradient descent / Adam). Reptile trains on
the validation points of its training tasks as well, of which it makes no other use."""
