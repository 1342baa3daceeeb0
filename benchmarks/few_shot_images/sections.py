"""The sections of the report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from benchmarks.few_shot_images import cells, kinks, published
from benchmarks.few_shot_images.sizes import Contender, Setting, Sizes
from benchmarks.harness import markdown, paired
from benchmarks.harness.registry import Preset
from benchmarks.harness.runner import Cell

Results = dict[str, dict[str, Any]]

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


def slug(setting: Setting) -> str:
    """A setting's name in file names."""
    return re.sub(r"[^a-z0-9]+", "-", setting.name.lower()).strip("-")


def missing(results: Results, asked: Sequence[Cell]) -> str:
    """Which cells have not been computed."""
    absent = [cell.key for cell in asked if cell.key not in results]
    if not absent:
        return ""
    listed = "\n".join(f"- {key}" for key in absent)
    return (
        f"**This report is not complete: {len(absent)} of {len(asked)} cells have not been"
        f" computed.** The same command goes on with them.\n\n{listed}"
    )


def section(results: Results, setting: Setting, preset: Preset, tests: int) -> str:
    """One setting: the methods and what can be said of them."""
    there = [one for one in setting.contenders if cells.key(setting, one.name) in results]
    base = results.get(cells.key(setting, cells.UNTRAINED))
    if not there or base is None:
        return ""
    parts = [
        f"## {setting.name}",
        _intro(base, setting, tests),
        _table(results, setting, there, base),
        _verdict(results, setting, there, preset),
        _sampling(results, setting, there),
        _stopped(results, setting, there),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part)


def _intro(base: dict[str, Any], setting: Setting, tests: int) -> str:
    protocol = setting.protocol
    train, validation, test = base["classes"]
    turned = "turned by a random multiple of 90 degrees per task and class" if (
        protocol.handling.rotated
    ) else "not turned"  # fmt: skip
    inverted = ", inverted" if protocol.handling.inverted else ""
    clip = "" if protocol.clip is None else f", gradients no longer than {protocol.clip:g}"
    length = setting.length
    limit = (
        f"{length.updates} meta-updates"
        if math.isinf(length.evaluations)
        else f"{length.evaluations:g} gradient evaluations per task of the meta-batch"
    )
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


def _table(results: Results, setting: Setting, there: list[Contender], base: dict[str, Any]) -> str:
    printed = published.column(setting.data, setting.ways, setting.shots)
    headers = [
        "method", "accuracy, %", *(["published"] if printed else []),
        "below A-MAML: p", "above it: p", "meta-updates", "gradient evaluations", "training s",
        "failed tasks",
    ]  # fmt: skip
    blank = [""] * (len(headers) - 2)
    rows: list[list[Any]] = [["not meta-trained", spread(base["accuracy"]), *blank]]
    for one in there:
        cell = results[cells.key(setting, one.name)]
        training = cell["training"]
        rows.append(
            [
                one.label,
                spread(cell["accuracy"]),
                *([published.beside(one.name, printed)] if printed else []),
                *([f"{p:.2g}" for p in _p_values(results, setting, one)] or ["", ""]),
                training["updates"],
                round(training["spent"]),
                round(training["seconds"]),
                training["failed_tasks"],
            ]
        )
    return markdown.table(headers, rows)


def _reference(setting: Setting) -> Contender:
    """A-MAML, with its longest horizon where it has several."""
    return max(
        (one for one in setting.contenders if one.method == "a-maml"),
        key=lambda one: one.horizon or 0.0,
    )


def _p_values(results: Results, setting: Setting, one: Contender) -> list[float]:
    """That A-MAML is above a method, and below it; none where they cannot be compared."""
    reference = _reference(setting)
    if one == reference or cells.key(setting, reference.name) not in results:
        return []
    first, second = (
        results[cells.key(setting, each.name)]["accuracy"] for each in (reference, one)
    )
    return [paired.p_value_above(first, second), paired.p_value_above(second, first)]


def _verdict(results: Results, setting: Setting, there: list[Contender], preset: Preset) -> str:
    if preset not in COMPARED:
        return "This preset is far too short to compare methods by; it shows that they all train."
    reference = _reference(setting)
    if reference not in there:
        return ""
    compared = {one.label: _p_values(results, setting, one) for one in there if one != reference}
    worse, better = (
        [label for label, found in compared.items() if found[side] < paired.LEVEL]
        for side in (0, 1)
    )
    return (
        f"Of the others, {_listed(worse)} are significantly below {reference.label}, and"
        f" {_listed(better)} significantly above it (paired over tasks, p < {paired.LEVEL:g},"
        " one seed)."
    )


def _listed(labels: list[str]) -> str:
    return ", ".join(labels) if labels else "none"


def _sampling(results: Results, setting: Setting, there: list[Contender]) -> str:
    trained = [results[cells.key(setting, one.name)]["training"] for one in there]
    seconds = sum(one["seconds_here"] for one in trained)
    waited = sum(one["sampling_seconds"] for one in trained)
    largest = max(one["sampling_seconds"] / max(one["seconds_here"], 1e-9) for one in trained)
    return (
        f"Drawing meta-batches took {100 * waited / max(seconds, 1e-9):.1f} % of the time of"
        f" meta-training (at most {100 * largest:.1f} % for one method)."
    )


def _stopped(results: Results, setting: Setting, there: list[Contender]) -> str:
    lines = [
        f"- {one.label}: {stopped}"
        for one in there
        if (stopped := results[cells.key(setting, one.name)]["training"]["stopped"])
    ]
    return "Runs that ended early:\n\n" + "\n".join(lines) if lines else ""


def kinked(results: Results, sizes: Sizes) -> str:
    """What kinks do to the gradient."""
    if sizes.kinks is None:
        return ""
    found = {name: results.get(kinks.key(name)) for name in sizes.kinks.activations}
    cases = {name: cell for name, cell in found.items() if cell is not None}
    if not cases:
        return ""
    first = next(iter(cases.values()))
    steps = sizes.kinks.steps
    finest = f"RK4, {steps[-1]} steps"
    few = first["descent_steps"]
    headers = [
        "activation", f"gradient descent, {few} steps",
        *(f"RK4, {n} steps" for n in steps[:-1]),
        *(f"A-MAML, {n} states" for n in (few, steps[-1])),
        *(f"{finest}, against differences of {width:g}" for width in kinks.WIDTHS),
    ]  # fmt: skip
    rows: list[list[Any]] = [
        [name, cell["descent"], *cell["coarser"], *cell["a_maml"], *cell["differences"]]
        for name, cell in cases.items()
    ]
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
        f"{markdown.table(headers, rows)}\n{_far(cases, few)}"
    )


def _far(cases: dict[str, dict[str, Any]], states: int) -> str:
    """How near the flow's gradient A-MAML is with as many states as it is trained with."""
    found = ", ".join(f"{cell['a_maml'][0]:.2g} ({name})" for name, cell in cases.items())
    return (
        f"A-MAML with {states} states, as many as it is trained with above, is {found} away from"
        " the gradient of the flow, relative to it: with distances of 0.5 and more it is not in"
        " the range in which its error falls with the square of the spacing."
    )
