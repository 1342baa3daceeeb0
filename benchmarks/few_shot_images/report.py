"""The report of the few-shot benchmark; what is missing is said, so that it can grow in pieces."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from benchmarks import budget, meta_training
from benchmarks.comparison import LEVEL, p_value_above
from benchmarks.few_shot_images import cells
from benchmarks.few_shot_images.cells import OWN
from benchmarks.few_shot_images.sizes import MADE_UP, Contender, Setting, Sizes, resolve
from benchmarks.harness import markdown, outline, plots
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.plots import Curve, Labels, Row
from benchmarks.harness.registry import Preset, Settings
from benchmarks.methods import LABELS
from benchmarks.problems import published


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`.

    Raises:
        IncompleteError: Cells are missing that `settings.only` left out; the report is of those
            that are there.
    """
    preset, sizes = settings.preset, resolve(settings.preset, settings.data)
    chosen = cells.cells(settings, sizes)
    done = outline.compute(
        settings, "few-shot-images", cells.REVISION, sizes, chosen, threads=None, gaps=True
    )  # fmt: skip
    results = done.cells
    sections = [head(preset, sizes), missing(results, chosen)]
    for setting in sizes.settings:
        base = results.get(cells.key(setting, cells.UNTRAINED))
        keys = {one: cells.key(setting, one.name) for one in setting.contenders}
        own = {one: results[key] for one, key in keys.items() if key in results}
        if own and base is not None:
            sections.append(section(own, base, setting, preset, sizes.tests))
        sections += _plots(settings, setting, own, base)
    sections.append(kinked(results, sizes))
    if any(published.pictures_column(s.data, s.ways, s.shots) for s in sizes.settings):
        sections.append(f"## Published numbers\n\n{published.ORIGINS}")
    if preset is Preset.BUDGET:
        sections.append(_NOT_RUN)
    title = "Few-shot classification of pictures (the paper's Table 3)"
    outline.write(settings, title, done._replace(cells=_short(results)), sections)


Trained = dict[Contender, dict[str, Any]]
"""The cells of a setting's contenders, as far as they are there."""


def head(preset: Preset, sizes: Sizes) -> str:
    """How the numbers were made."""
    own = ", ".join(LABELS[name] for name in OWN)
    text = _HEAD.format(own=own, rule=budget.UPDATE_RULE)
    if preset is Preset.BUDGET:
        text += f"\n\n{_BUDGET}"
    if any(setting.data == MADE_UP for setting in sizes.settings):
        text += "\n\n**No data was found: the pictures are made up.**"
    return text


COMPARED = (Preset.BUDGET, Preset.PAPER)
"""Presets in which methods are compared."""


def interval(accuracies: list[float]) -> tuple[float, float]:
    """The mean over tasks and half its 95 % interval, 1.96 standard errors, both in percent."""
    half_width = 1.96 * pstdev(accuracies) / math.sqrt(len(accuracies))
    return 100 * fmean(accuracies), 100 * half_width


def spread(accuracies: list[float]) -> str:
    """The same as text."""
    mean, half_width = interval(accuracies)
    return f"{mean:.2f} ± {half_width:.2f}"


def missing(results: Cells, wanted: Sequence[Cell]) -> str:
    """Which cells have not been computed."""
    absent = [cell.key for cell in wanted if cell.key not in results]
    if not absent:
        return ""
    listed = "\n".join(f"- {key}" for key in absent)
    return (
        f"**This report is not complete: {len(absent)} of {len(wanted)} cells have not been"
        f" computed.** The same command goes on with them.\n\n{listed}"
    )


def section(
    own: Trained, base: dict[str, Any], setting: Setting, preset: Preset, tests: int
) -> str:
    """One setting: the methods and what can be said of them."""
    # A-MAML, with its longest horizon where it has several
    several = [one for one in setting.contenders if one.method == "a-maml"]
    reference = max(several, key=lambda one: one.horizon or 0.0)
    ours = own.get(reference, {}).get("accuracy")
    p_values: dict[Contender, tuple[float, float]] = {}  # that A-MAML is above one, and below it
    if ours is not None:
        for one in own.keys() - {reference}:
            theirs = own[one]["accuracy"]
            p_values[one] = p_value_above(ours, theirs), p_value_above(theirs, ours)
    verdict = meta_training.TOO_SHORT
    if preset in COMPARED:
        verdict = _verdict(own, p_values, reference) if ours is not None else ""
    parts = [
        f"## {setting.name}",
        _intro(base, setting, tests),
        _table(own, p_values, setting, base),
        verdict,
        _sampling(own),
        meta_training.ended_early(
            {one.label: cell["training"]["stopped"] for one, cell in own.items()}
        ),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part)


def _intro(base: dict[str, Any], setting: Setting, tests: int) -> str:
    protocol = setting.protocol
    train, validation, test = base["classes"]
    turned = "not turned"
    if protocol.handling.rotated:
        turned = "turned by a random multiple of 90 degrees per task and class"
    inverted = ", inverted" if protocol.handling.inverted else ""
    clip = "" if protocol.clip is None else f", gradients no longer than {protocol.clip:g}"
    limit = f"{setting.length.updates} meta-updates"
    if not math.isinf(setting.length.evaluations):
        per_task = "gradient evaluations per task of the meta-batch"
        limit = f"{setting.length.evaluations:g} {per_task}"
    return (
        f"{train} classes for meta-training, {validation} for validation and {test} for the"
        f" meta-test, {base['shared_classes']} of them shared. Pictures are {turned}{inverted}."
        f" Net `{protocol.net}`, {setting.norm} statistics, {setting.activation}. Inner learning"
        f" rate {protocol.lr:g}, {protocol.steps} steps (T = {protocol.lr * protocol.steps:g}),"
        f" {protocol.test_steps} at the meta-test; meta-batches of {protocol.tasks} tasks with"
        f" {setting.queries} validation picture(s) per class; Adam, 1e-3{clip}. Meta-training ends"
        f" after {limit}. {tests} test tasks with {setting.shots} validation picture(s) per class,"
        f" the same for every method."
    )


def _table(
    own: Trained, p_values: dict[Contender, tuple[float, float]], setting: Setting,
    base: dict[str, Any],
) -> str:  # fmt: skip
    printed = published.pictures_column(setting.data, setting.ways, setting.shots)
    headers = [
        "method", "accuracy, %", *(["published"] if printed else []),
        "below A-MAML: p", "above it: p", "meta-updates", "gradient evaluations", "training s",
        "failed tasks",
    ]  # fmt: skip
    blank = [""] * (len(headers) - 2)
    rows: list[list[Any]] = [["not meta-trained", spread(base["accuracy"]), *blank]]
    for one, cell in own.items():
        training = cell["training"]
        rows.append([
            one.label, spread(cell["accuracy"]),
            *([published.beside(one.name, printed)] if printed else []),
            *([f"{p:.2g}" for p in p_values[one]] if one in p_values else ["", ""]),
            training["updates"], round(training["spent"]), round(training["seconds"]),
            training["failed_tasks"],
        ])  # fmt: skip
    return markdown.table(headers, rows)


def _verdict(
    own: Trained, p_values: dict[Contender, tuple[float, float]], reference: Contender
) -> str:
    worse, better = (
        ", ".join(one.label for one in own if one in p_values and p_values[one][side] < LEVEL)
        or "none"
        for side in (0, 1)
    )
    return (
        f"Of the others, {worse} are significantly below {reference.label}, and {better}"
        f" significantly above it (paired over tasks, p < {LEVEL:g}, one seed)."
    )


def _sampling(own: Trained) -> str:
    times = [
        (c["training"]["sampling_seconds"], c["training"]["seconds_here"]) for c in own.values()
    ]
    waited, seconds = (sum(column) for column in zip(*times, strict=True))
    largest = max(waiting / max(training, 1e-9) for waiting, training in times)
    return (
        f"Drawing meta-batches took {100 * waited / max(seconds, 1e-9):.1f} % of the time of"
        f" meta-training (at most {100 * largest:.1f} % for one method)."
    )


def kinked(results: Cells, sizes: Sizes) -> str:
    """What kinks do to the gradient."""
    kinds = () if sizes.kinks is None else sizes.kinks.activations
    keys = {name: cells.kink_key(name) for name in kinds}
    cases = {name: results[key] for name, key in keys.items() if key in results}
    if sizes.kinks is None or not cases:
        return ""
    first = next(iter(cases.values()))
    steps = sizes.kinks.steps
    finest = f"RK4, {steps[-1]} steps"
    few = first["descent_steps"]
    headers = [
        "activation", f"gradient descent, {few} steps",
        *(f"RK4, {n} steps" for n in steps[:-1]),
        *(f"A-MAML, {n} states" for n in (few, steps[-1])),
        *(f"{finest}, against differences of {width:g}" for width in cells.WIDTHS),
    ]  # fmt: skip
    rows: list[list[Any]] = [
        [name, cell["descent"], *cell["coarser"], *cell["a_maml"], *cell["differences"]]
        for name, cell in cases.items()
    ]
    far = ", ".join(f"{cell['a_maml'][0]:.2g} ({name})" for name, cell in cases.items())
    return (
        f"## What ReLU does to the gradient\n\nMeta-gradients of {sizes.kinks.tasks} task(s) of the"
        f" first setting at the initialisation, float64, T = {first['horizon']:g}: relative"
        f" distances to {finest} with the exact adjoint. The last columns set the slope of that"
        " gradient along itself against central differences of the validation loss after the flow,"
        " whose width is relative to the norm of the parameters. Where the loss is smooth,"
        " distances tend to zero with the steps, and differences of small width agree with the"
        " slope. Where it has kinks the velocity jumps, and with it the validation loss after any"
        " number of steps: what differences say depends on their width, and no adjoint sees that"
        " part.\n\n"
        f"{markdown.table(headers, rows)}\n"
        f"A-MAML with {few} states, as many as it is trained with above, is {far} away from the"
        " gradient of the flow, relative to it: with distances of 0.5 and more it is not in the"
        " range in which its error falls with the square of the spacing."
    )


def _short(value: Any) -> Any:
    """The same with accuracies of tasks, which are in float32, as short numbers."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [round(each, 6) for each in own] if key == "accuracy" else _short(own)
        for key, own in value.items()
    }


def _plots(
    settings: Settings, setting: Setting, own: Trained, base: dict[str, Any] | None
) -> list[str]:
    """Draws what there is of a setting; what shows the files."""
    if not own:
        return []
    rows, lines = list[Row](), list[Curve]()
    if base is not None:
        rows.append(Row("not meta-trained", *interval(base["accuracy"])))
    for one, cell in own.items():
        training, end = cell["training"], cell["accuracy"]
        rows.append(Row(one.label, *interval(end), emphasised=one.method == "a-maml"))
        looks = [*training["looks"], {"spent": training["spent"], "accuracy": end}]
        means, widths = zip(*(interval(look["accuracy"]) for look in looks), strict=True)
        lines.append(Curve(one.label, [look["spent"] for look in looks], means, widths))
    stem = re.sub(r"[^a-z0-9]+", "-", setting.name.lower()).strip("-")
    folder, unit = settings.store.directory, "accuracy on new classes, %"
    labels = Labels(setting.name, f"{unit}, 95 % intervals")
    ends = plots.intervals(folder / f"{stem}-accuracy.png", labels, rows)
    labels = Labels(setting.name, "gradient evaluations per task of the meta-batch", unit)
    along = plots.curves(folder / f"{stem}-training.png", labels, lines, bottom=None)
    return [f"![accuracy]({ends.name})", f"![along meta-training]({along.name})"]


_HEAD = """\
A task is to tell new classes apart after adaptation to a few pictures of each. The protocols
"imaml" and "maml" prepare data as the released code of these papers does, and have their nets,
learning rates and steps; they differ in classes, rotation, inversion and nets, and their numbers
must not be mixed. Classes of meta-training, validation and meta-test are disjoint, which is
checked (the released evaluation of iMAML draws 73 % of its test classes from those of training).
Normalisation is by the statistics of the batch at hand, also at the test, as in these papers: the
test pictures of a task are predicted together ("transductive"). float32, one seed.

Accuracy is the share of right labels, mean over test tasks ± 1.96 standard errors (95 %
intervals). It is reached by gradient descent from the learned initialisation; {own},
which learn their adaptation, use their own. p: one-sided Wilcoxon test over tasks. A-MAML solves
its flow with Dormand-Prince, tolerances 1e-3 and 1e-5, and keeps a state per step of gradient
descent. Failed tasks are those whose inner solve diverged, or whose gradient a guard refused; they
are left out of their meta-update. Seconds are of the clock, with whatever else the machine did.

{rule}"""

_BUDGET = """This preset compares methods at equal cost, and the budget is small: each may spend as
many gradient evaluations as the others, so that one whose meta-gradient is expensive makes fewer
meta-updates. Inner loops are short (T = 0.5), meta-batches small and there is one validation
picture per class; the protocols' names say "short" for that. All accuracies are far below those
that the papers reach with thousands of times as many gradients, and a ranking at this budget says
who learns fastest at first, not who ends up best."""

_NOT_RUN = """## What was not run

The preset "paper": the protocols at full length (20,000 and 60,000 meta-updates, 5 and 20 ways, 1
and 5 shots, A-MAML at T = 0.5, 1 and 5). A meta-update of the 20-way 1-shot Omniglot protocol costs
about 1 TFLOP, which takes a CPU core a minute or so, and a run of one method 20,000 of them. It can
be stopped at any time and goes on from its last checkpoint, ten meta-updates back at most
(`--device cuda`, `--only` for some cells), but no GPU was at hand for this report. Published
accuracies, where they stand in a table above, are of those lengths and are no target for this
budget."""
