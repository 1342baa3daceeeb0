"""The report of the collaborative-filtering benchmark."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

from benchmarks import meta_training
from benchmarks.collaborative_filtering import cells
from benchmarks.collaborative_filtering.cells import MADE_UP, Setting, Sizes, resolve
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.harness import markdown, outline, plots
from benchmarks.harness.outline import Cells
from benchmarks.harness.plots import Curve, Labels
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import LABELS, TENTH
from benchmarks.problems import published, ratings

NAME, TITLE = "collaborative-filtering", "Collaborative filtering (the paper's Tables 1 and 2)"
PAPER_UPDATES = 5000
MODES = {"gd": "gradient descent", "own": "its own", "adam": "Adam"}
TESTED = "gd"
"""The adaptation that methods are compared by."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`.

    Raises:
        IncompleteError: Cells are missing that `settings.only` left out; the report is of the
            settings that are complete.
    """
    sizes = resolve(settings.preset, settings.data)
    chosen = cells.cells(settings, sizes)
    done = outline.compute(settings, NAME, cells.REVISION, sizes, chosen, gaps=True)
    results = done.cells
    sections = [head(sizes)]
    names = (cells.BASELINES, *sizes.methods)
    complete = [s for s in sizes.settings if all(cells.key(s, name) in results for name in names)]
    if not complete:
        done.check_complete()
    missing = [setting.name for setting in sizes.settings if setting not in complete]
    if missing:
        sections.append(f"**Not run:** {'; '.join(missing)}.")
    if settings.preset is Preset.PAPER:
        sections.append(overview(results, complete, sizes))
    for setting in complete:
        sections.append(section(results, setting, sizes, settings.preset))
        sections.append(f"![held-out error]({_plot(results, settings, setting, sizes)})")
    outline.write(settings, TITLE, done, sections)


def head(sizes: Sizes) -> str:
    """How the numbers were made and what they can be compared with."""
    updates = f"{sizes.updates} meta-updates"
    updates += (
        ", as in the paper" if sizes.updates == PAPER_UPDATES else f" (the paper: {PAPER_UPDATES})"
    )
    text = _HEAD.format(epochs=sizes.epochs, tests=sizes.tests, updates=updates)
    if any(setting.data == MADE_UP for setting in sizes.settings):
        text += "\n\n**No data was found: the ratings are made up.**"
    return f"{text}\n\n{_COMPARED}"


def section(results: Cells, setting: Setting, sizes: Sizes, preset: Preset) -> str:
    """One setting: the methods, the baselines and what can be said of them."""
    base = results[cells.key(setting, cells.BASELINES)]
    own = {name: results[cells.key(setting, name)] for name in sizes.methods}
    stopped = {LABELS[name]: cell["training"]["stopped"] for name, cell in own.items()}
    parts = [
        f"## {setting.name}",
        _intro(base, setting),
        _methods(own, setting),
        _baselines(own, base),
        _verdict(own, preset),
        meta_training.ended_early(stopped),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part)


def overview(results: Cells, settings: list[Setting], sizes: Sizes) -> str:
    """The held-out error of every method in every setting."""
    best = ratings.BASELINES["biases"]
    rows = [
        [
            setting.name,
            *(spread(results[cells.key(setting, n)][TESTED]["held_out"]) for n in sizes.methods),
            spread(results[cells.key(setting, cells.BASELINES)]["errors"]["biases"]),
        ]
        for setting in settings
    ]
    headers = ["setting", *(LABELS[name] for name in sizes.methods), best]
    return f"## Held-out nRMSE, all settings\n\n{markdown.table(headers, rows)}"


def spread(errors: list[float]) -> str:
    """Mean and standard deviation over the tasks; tasks that diverged are left out and counted."""
    finite = [error for error in errors if math.isfinite(error)]
    if not finite:
        return "unstable"
    lost = len(errors) - len(finite)
    text = f"{fmean(finite):.3f} ± {pstdev(finite):.3f}"
    return f"{text} ({lost} diverged)" if lost else text


def _intro(base: dict[str, Any], setting: Setting) -> str:
    left_out = base["test_users"] - base["evaluated_users"]
    tenths = ", ".join(LABELS[name] for name in TENTH)
    return (
        f"{base['train_users']} users for training and {base['test_users']} for the test, of whom"
        f" {left_out} have no rating left beside the {setting.shots} to adapt to: they are left out"
        f" of the held-out error, which is over {base['held_out']} ratings of"
        f" {base['evaluated_users']} users. T = {setting.steps * cells.LR:g}, {setting.steps} steps"
        f" ({tenths}: {max(1, setting.steps // 10)}; MAML-1: 1; iMAML-HF: 5 Newton steps). The"
        f" unit, the standard deviation of the training users' ratings, is {base['unit']:.3f}."
    )


def _methods(own: Cells, setting: Setting) -> str:
    printed = published.ratings_column(setting.data, setting.shots, setting.steps)
    headers = [
        "method",
        *(f"held-out, {title}" for title in MODES.values()),
        *(f"adapted to, {title}" for title in MODES.values()),
        *([f"published, {published.NUMBERS[setting.steps]}"] if printed else []),
        "A-MAML above it: p", "training s", "failed tasks",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for name, cell in own.items():
        above = "" if name == "a-maml" or "a-maml" not in own else f"{_p_above(own, name):.2g}"
        rows.append(
            [
                LABELS[name],
                *(spread(cell[mode]["held_out"]) for mode in MODES),
                *(f"{_mean(cell[mode]['adaptation']):.3f}" for mode in MODES),
                *([printed.get(name, "").replace("±", " ± ")] if printed else []),
                above,
                round(cell["training"]["seconds"]),
                cell["training"]["failed_tasks"],
            ]
        )
    return markdown.table(headers, rows)


def _baselines(own: Cells, base: dict[str, Any]) -> str:
    errors = {label: base["errors"][name] for name, label in ratings.BASELINES.items()}
    errors["the network without meta-training, gradient descent"] = base["untrained"]["held_out"]
    rows: list[list[Any]] = [[label, spread(values)] for label, values in errors.items()]
    headers = ["baseline", "held-out"]
    if "a-maml" in own:
        headers += ["A-MAML above it: p", "below it: p"]
        ours = own["a-maml"][TESTED]["held_out"]
        for row, values in zip(rows, errors.values(), strict=True):
            row += [f"{p_value_above(*pair):.2g}" for pair in ((ours, values), (values, ours))]
    return markdown.table(headers, rows)


def _mean(errors: list[float]) -> float:
    finite = [error for error in errors if math.isfinite(error)]
    return fmean(finite) if finite else math.nan


def _p_above(own: Cells, name: str) -> float:
    """That A-MAML's held-out error is above that of a method."""
    return p_value_above(*(own[method][TESTED]["held_out"] for method in ("a-maml", name)))


def _verdict(own: Cells, preset: Preset) -> str:
    """Whether A-MAML is the best, or not significantly worse than the best."""
    if preset is not Preset.PAPER:
        return meta_training.TOO_SHORT
    above = [LABELS[name] for name in own if name != "a-maml" and _p_above(own, name) < LEVEL]
    worse = f"is significantly above that of {', '.join(above)}" if above else "is not above any"
    return (
        f"After gradient descent the held-out error of A-MAML {worse} (paired over tasks,"
        f" p < {LEVEL:g})."
    )


def _plot(results: Cells, settings: Settings, setting: Setting, sizes: Sizes) -> str:
    """Draws the held-out error along the descent; the name of the file."""
    own = {name: results[cells.key(setting, name)]["curve"] for name in sizes.methods}
    lines = [Curve(LABELS[name], curve["steps"], curve["mean"]) for name, curve in own.items()]
    end = lines[0].x[-1]
    biases = fmean(results[cells.key(setting, cells.BASELINES)]["errors"]["biases"])
    lines.append(Curve("biases, no network", [0, end], [biases, biases]))
    labels = Labels(setting.name, "steps of gradient descent", "held-out nRMSE")
    name = f"{setting.name.replace(' ', '-')}.png"
    plots.curves(settings.store.directory / name, labels, lines)
    return name


_HEAD = """\
One user's ratings are one task. The network is the paper's (one-hot 100-40-40-1, tanh, 5721
parameters), in float32; the loss of every inner and outer problem is half the mean square on
standardised ratings. Inner learning rate 0.01; meta-batches of 5 tasks, Adam with 1e-3 outside;
{updates}, one seed. A-MAML keeps every state.

{tests} users are for the meta-test, the same for every method. The paper's 100 most rated movies
are kept, and the users with at least 10 ratings of them: this gives the paper's 4,985 tasks on
MovieLens-1M and, on the latest-small release of 2016 (`movielens-small-2016`), its 489 tasks of
"MovieLens-100K". The classic MovieLens-100K (`movielens-100k`) stands beside it, with at least 20
ratings as the paper's text has it (575 tasks). A user with too few ratings for a training task is
never drawn, and one with too few to adapt to is no test user. Each time that a user is drawn for
training their ratings are divided anew.

A test user's task is to adapt to as many ratings as in training and to predict all the others:
"held-out" is the root mean square error on these, "adapted to" that on the ratings adapted to,
both in units of the standard deviation of the training users' ratings (nRMSE); mean ± standard
deviation over users. The initialisation is adapted by gradient descent for the steps of the
heading, as the method does it in training ("its own"), and by {epochs} epochs of Adam, 1e-3, which
is what the authors' released code does at the test of another experiment. p: one-sided Wilcoxon
test, over users, of the held-out errors after gradient descent. Failed tasks are those whose inner
solve diverged, or whose gradient a guard refused; they are left out of their meta-update. The
baselines learn from the same training users, from all their ratings."""

_COMPARED = """## What can be compared with the published numbers

Not their size. The paper's protocol for this experiment is incomplete and its code for it was not
released: the scale and the denominator of its nRMSE, the division of the ratings and the steps of
MAML at the test are not stated, and the shots in its text differ from those in its tables. Its
numbers, 0.02 to 0.41, cannot be held-out errors in units of a standard deviation: on MovieLens the
best methods known, given all ratings, reach about 0.8 in that unit. We infer that they are errors
on the ratings adapted to, or have another denominator: the columns "adapted to" are the ones to
set beside them. What can be compared is which method comes out ahead. The baselines say what a
held-out error is worth: 1 is about what the global mean scores."""
