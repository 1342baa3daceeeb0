"""The report of the regression benchmark."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from benchmarks import meta_training
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.harness import markdown, outline, plots
from benchmarks.harness.outline import Cells
from benchmarks.harness.plots import Curve, Labels
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import LABELS
from benchmarks.problems.published import FIGURE_2
from benchmarks.regression import cells, diagnosis
from benchmarks.regression.cells import SIZES, Setting, Sizes

NAME, TITLE = "regression", "Regression of 2D functions (the paper's Figure 2)"
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
    chosen = [*cells.cells(settings, sizes), *diagnosis.cells(settings, sizes)]
    done = outline.compute(settings, NAME, cells.REVISION, sizes, chosen, gaps=True)
    complete = _complete(done.cells, sizes)
    if not complete:
        done.check_complete()
    seeds = {setting.name: setting.seeds for setting in complete}
    missing = [
        f"{setting.name}, seed {seed}"
        for setting in sizes.settings
        for seed in setting.seeds
        if seed not in seeds.get(setting.name, ())
    ]
    sections = [_HEAD.format(epochs=sizes.epochs)]
    if missing:
        sections.append(f"**Not run:** {'; '.join(missing)}.")
    for setting in complete:
        runs = {
            name: [done.cells[cells.key(setting, seed, name)] for seed in setting.seeds]
            for name in sizes.methods
        }
        why = diagnosis.section(done.cells.get(diagnosis.key(setting)))
        sections.append(_section(runs, setting, sizes, settings, why))
    outline.write(settings, TITLE, done, sections)


def _complete(results: Cells, sizes: Sizes) -> list[Setting]:
    """The settings with a result of every method, each with those seeds only."""
    settings: list[Setting] = []
    for setting in sizes.settings:
        seeds = [
            seed
            for seed in setting.seeds
            if all(cells.key(setting, seed, name) in results for name in sizes.methods)
        ]
        if seeds:
            settings.append(replace(setting, seeds=tuple(seeds)))
    return settings


def _section(runs: Runs, setting: Setting, sizes: Sizes, settings: Settings, why: str) -> str:
    published = FIGURE_2.get((setting.family, setting.shots), {})
    rows: list[list[Any]] = []
    for name, own in runs.items():
        compared = name != "a-maml" and "a-maml" in runs
        paper = published.get(name)
        rows.append(
            [
                LABELS[name],
                *(_spread([cell[mode]["final"] for cell in own]) for mode in MODES),
                _spread([cell["own"] for cell in own]),
                "" if paper is None else f"{paper:g}",
                " / ".join(f"{_p_above(runs, name, mode):.2g}" for mode in MODES if compared),
                round(sum(cell["training"]["seconds"] for cell in own)),
                sum(cell["training"]["failed_tasks"] for cell in own),
            ]
        )
    headers = [
        "method", *MODES.values(), "its own adaptation", "published", "A-MAML above it: p",
        "training s", "failed tasks",
    ]  # fmt: skip
    steps = sizes.steps[setting.shots]
    intro = (
        f"## {setting.name}\n\n{sizes.updates} meta-updates, {len(setting.seeds)} seed(s); T ="
        f" {steps * cells.LR:g}, {steps} steps of gradient descent (MAML, truncated MAML, Meta-SGD"
        f" and ANIL: {max(1, steps // 10)}; MAML-1: 1). A constant prediction scores"
        f" {cells.episodes(setting).constant_rmse():.3f}."
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
        why,
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
