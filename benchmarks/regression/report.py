"""The report of the regression benchmark."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import torch

import odeopt
from benchmarks.harness import curves, environment, markdown, outline, paired
from benchmarks.harness.curves import Curve
from benchmarks.harness.plots import Labels
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.runner import check_complete, run_cells
from benchmarks.methods import LABELS
from benchmarks.problems.figure_2 import FIGURE_2
from benchmarks.regression import cells, diagnosis
from benchmarks.regression.sizes import SIZES, Setting, Sizes

Results = dict[str, dict[str, Any]]
MODES = {"gd": "gradient descent, 0.01", "adam": "Adam, 1e-3"}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)  # the problems are small: more threads only wait for each other
    sizes = SIZES[settings.preset]
    circumstances = environment.describe(settings.device)
    mark = outline.mark(settings, cells.REVISION, sizes)
    asked = [*cells.cells(settings, sizes), *diagnosis.cells(settings, sizes)]
    results = run_cells("regression", asked, settings.store, mark, settings.only, gaps=True)
    done = _complete(results, sizes)
    if not done:
        check_complete(results, asked)
    sections = [_head(settings, circumstances, sizes), *_not_run(sizes, done)]
    for setting in done:
        sections.append(_section(results, setting, sizes, settings.preset))
        _plots(results, settings, setting, sizes)
    settings.store.write_text("report.md", "\n\n".join(sections) + "\n")
    settings.store.write_json("results.json", {"environment": circumstances, "cells": results})
    check_complete(results, asked)


def _complete(results: Results, sizes: Sizes) -> list[Setting]:
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


def _not_run(sizes: Sizes, done: list[Setting]) -> list[str]:
    """What the preset has beyond this report."""
    seeds = {setting.name: setting.seeds for setting in done}
    missing = [
        f"{setting.name}, seed {seed}"
        for setting in sizes.settings
        for seed in setting.seeds
        if seed not in seeds.get(setting.name, ())
    ]
    return [f"**Not run:** {'; '.join(missing)}."] if missing else []


def _section(results: Results, setting: Setting, sizes: Sizes, preset: Preset) -> str:
    published = FIGURE_2.get((setting.family, setting.shots), {})
    rows: list[list[Any]] = []
    for name in sizes.methods:
        found = [results[cells.key(setting, seed, name)] for seed in setting.seeds]
        paper = published.get(name)
        rows.append(
            [
                LABELS[name],
                *(_spread([cell[mode]["final"] for cell in found]) for mode in MODES),
                _spread([cell["own"] for cell in found]),
                "" if paper is None else f"{paper:g}",
                _versus_amaml(results, setting, name, sizes),
                round(sum(cell["training"]["seconds"] for cell in found)),
                sum(cell["training"]["failed_tasks"] for cell in found),
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
    plots = "\n".join(f"![{mode}]({_plot_name(setting, mode)})" for mode in MODES)
    verdict = _verdict(results, setting, sizes, preset)
    why = diagnosis.section(results.get(diagnosis.key(setting)))
    parts = [intro, markdown.table(headers, rows), verdict, why, plots]
    return "\n\n".join(part for part in [*parts, _stopped(results, setting, sizes)] if part)


def _spread(finals: list[list[float]]) -> str:
    """Mean and standard deviation over the tasks, averaged over seeds; the seeds' own spread."""
    means = [fmean(tasks) for tasks in finals]
    text = f"{fmean(means):.3f} ± {fmean(pstdev(tasks) for tasks in finals):.3f}"
    return text if len(finals) == 1 else f"{text} (seeds ± {pstdev(means):.3f})"


def _versus_amaml(results: Results, setting: Setting, name: str, sizes: Sizes) -> str:
    if name == "a-maml" or "a-maml" not in sizes.methods:
        return ""
    found = [_p_value(results, setting, name, mode) for mode in MODES]
    return " / ".join(f"{p:.2g}" for p in found)


def _p_value(results: Results, setting: Setting, name: str, mode: str) -> float:
    """Over tasks; each task's error is its mean over the seeds."""

    def errors(method: str) -> list[float]:
        runs = [results[cells.key(setting, seed, method)][mode]["final"] for seed in setting.seeds]
        return [fmean(task) for task in zip(*runs, strict=True)]

    return paired.p_value_above(errors("a-maml"), errors(name))


def _verdict(results: Results, setting: Setting, sizes: Sizes, preset: Preset) -> str:
    """Whether A-MAML is the best, or not significantly worse than the best."""
    if preset is not Preset.PAPER:
        return "This preset is far too short to compare methods by; it shows that they all train."
    lines: list[str] = []
    for mode, title in MODES.items():
        above = [
            LABELS[name]
            for name in sizes.methods
            if name != "a-maml" and _p_value(results, setting, name, mode) < paired.LEVEL
        ]
        worse = f"is significantly above {', '.join(above)}" if above else "is not above any method"
        lines.append(f"- {title}: the error of A-MAML {worse} (paired over tasks, p < 0.05).")
    return "\n".join(lines)


def _stopped(results: Results, setting: Setting, sizes: Sizes) -> str:
    lines = [
        f"- {LABELS[name]}, seed {seed}: {stopped}"
        for seed in setting.seeds
        for name in sizes.methods
        if (stopped := results[cells.key(setting, seed, name)]["training"]["stopped"])
    ]
    return "Runs that ended early:\n\n" + "\n".join(lines) if lines else ""


def _plots(results: Results, settings: Settings, setting: Setting, sizes: Sizes) -> None:
    for mode, title in MODES.items():
        lines: list[Curve] = []
        for name in sizes.methods:
            found = [results[cells.key(setting, seed, name)][mode] for seed in setting.seeds]
            mean = [fmean(point) for point in zip(*(c["mean"] for c in found), strict=True)]
            paper = FIGURE_2.get((setting.family, setting.shots), {}).get(name)
            lines.append(Curve(LABELS[name], found[0]["epochs"], mean, published=paper))
        labels = Labels(f"{setting.name}, {title}", "epochs of the meta-test", "nRMSE")
        curves.curves(settings.store.directory / _plot_name(setting, mode), labels, lines)


def _plot_name(setting: Setting, mode: str) -> str:
    return f"{setting.family}-{setting.shots}-{setting.protocol}-{mode}.png"


def _head(settings: Settings, circumstances: dict[str, Any], sizes: Sizes) -> str:
    listed = "\n".join(f"- {name}: {value}" for name, value in circumstances.items())
    return _HEAD.format(
        preset=settings.preset.value, version=odeopt.__version__, listed=listed,
        epochs=sizes.epochs,
    )  # fmt: skip


_HEAD = """# Regression of 2D functions (the paper's Figure 2)

Made by `python -m benchmarks regression --preset {preset}`, odeopt {version}. All numbers are in
`results.json`.

{listed}

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
