"""The sections of the report, one per setting."""

from __future__ import annotations

import math
from statistics import fmean, pstdev
from typing import Any

from benchmarks.collaborative_filtering import cells, published
from benchmarks.collaborative_filtering.sizes import Setting, Sizes
from benchmarks.harness import markdown, paired
from benchmarks.harness.registry import Preset
from benchmarks.methods import LABELS, TENTH
from benchmarks.problems import rating_baselines

Results = dict[str, dict[str, Any]]

MODES = {"gd": "gradient descent", "own": "its own", "adam": "Adam"}
TESTED = "gd"
"""The adaptation that methods are compared by."""


def section(results: Results, setting: Setting, sizes: Sizes, preset: Preset) -> str:
    """One setting: the methods, the baselines and what can be said of them."""
    base = results[cells.key(setting, cells.BASELINES)]
    parts = [
        f"## {setting.name}",
        _intro(base, setting),
        _methods(results, setting, sizes),
        _baselines(results, setting, sizes),
        _verdict(results, setting, sizes, preset),
        _stopped(results, setting, sizes),
    ]
    return "\n\n".join(part.rstrip() for part in parts if part)


def overview(results: Results, sizes: Sizes) -> str:
    """The held-out error of every method in every setting."""
    best = rating_baselines.LABELS["biases"]
    headers = ["setting", *(LABELS[name] for name in sizes.methods), best]
    rows = [
        [
            setting.name,
            *(spread(_held_out(results, setting, name)) for name in sizes.methods),
            spread(results[cells.key(setting, cells.BASELINES)]["errors"]["biases"]),
        ]
        for setting in sizes.settings
    ]
    return f"## Held-out nRMSE, all settings\n\n{markdown.table(headers, rows).rstrip()}"


def spread(errors: list[float]) -> str:
    """Mean and standard deviation over the tasks; tasks that diverged are left out and counted."""
    finite = [error for error in errors if math.isfinite(error)]
    if not finite:
        return "unstable"
    lost = len(errors) - len(finite)
    found = f"{fmean(finite):.3f} ± {pstdev(finite):.3f}"
    return f"{found} ({lost} diverged)" if lost else found


def _intro(base: dict[str, Any], setting: Setting) -> str:
    left_out = base["test_users"] - base["evaluated_users"]
    return (
        f"{base['train_users']} users for training and {base['test_users']} for the test, of whom"
        f" {left_out} have no rating left beside the {setting.shots} to adapt to: they are left out"
        f" of the held-out error, which is over {base['held_out']} ratings of"
        f" {base['evaluated_users']} users. T = {setting.steps * cells.LR:g}, {setting.steps} steps"
        f" ({_tenths()}: {max(1, setting.steps // 10)}; MAML-1: 1; iMAML-HF: 5 Newton steps). The"
        f" unit, the standard deviation of the training users' ratings, is {base['unit']:.3f}."
    )


def _tenths() -> str:
    return ", ".join(LABELS[name] for name in TENTH)


def _methods(results: Results, setting: Setting, sizes: Sizes) -> str:
    printed = published.column(setting.data, setting.shots, setting.steps)
    number = published.NUMBERS.get(setting.steps, "")
    headers = [
        "method",
        *(f"held-out, {title}" for title in MODES.values()),
        *(f"adapted to, {title}" for title in MODES.values()),
        *([f"published, {number}"] if printed else []),
        "A-MAML above it: p", "training s", "failed tasks",
    ]  # fmt: skip
    rows: list[list[Any]] = []
    for name in sizes.methods:
        cell = results[cells.key(setting, name)]
        rows.append(
            [
                LABELS[name],
                *(spread(cell[mode]["held_out"]) for mode in MODES),
                *(f"{_mean(cell[mode]['adaptation']):.3f}" for mode in MODES),
                *([printed.get(name, "").replace("±", " ± ")] if printed else []),
                _p_text(results, setting, name, sizes),
                round(cell["training"]["seconds"]),
                cell["training"]["failed_tasks"],
            ]
        )
    return markdown.table(headers, rows)


def _baselines(results: Results, setting: Setting, sizes: Sizes) -> str:
    base = results[cells.key(setting, cells.BASELINES)]
    found = {label: base["errors"][name] for name, label in rating_baselines.LABELS.items()}
    found["the network without meta-training, gradient descent"] = base["untrained"]["held_out"]
    rows: list[list[Any]] = []
    for label, errors in found.items():
        row: list[Any] = [label, spread(errors)]
        if "a-maml" in sizes.methods:
            own = _held_out(results, setting, "a-maml")
            pair = paired.p_value_above(own, errors), paired.p_value_above(errors, own)
            row += [f"{p:.2g}" for p in pair]
        rows.append(row)
    tests = ["A-MAML above it: p", "below it: p"] if "a-maml" in sizes.methods else []
    return markdown.table(["baseline", "held-out", *tests], rows)


def _mean(errors: list[float]) -> float:
    finite = [error for error in errors if math.isfinite(error)]
    return fmean(finite) if finite else math.nan


def _held_out(results: Results, setting: Setting, name: str) -> list[float]:
    return results[cells.key(setting, name)][TESTED]["held_out"]


def _p_value(results: Results, setting: Setting, name: str) -> float:
    first, second = (_held_out(results, setting, method) for method in ("a-maml", name))
    return paired.p_value_above(first, second)


def _p_text(results: Results, setting: Setting, name: str, sizes: Sizes) -> str:
    if name == "a-maml" or "a-maml" not in sizes.methods:
        return ""
    return f"{_p_value(results, setting, name):.2g}"


def _verdict(results: Results, setting: Setting, sizes: Sizes, preset: Preset) -> str:
    """Whether A-MAML is the best, or not significantly worse than the best."""
    if preset is not Preset.PAPER:
        return "This preset is far too short to compare methods by; it shows that they all train."
    above = [
        LABELS[name]
        for name in sizes.methods
        if name != "a-maml" and _p_value(results, setting, name) < paired.LEVEL
    ]
    worse = f"is significantly above that of {', '.join(above)}" if above else "is not above any"
    return (
        f"After gradient descent the held-out error of A-MAML {worse} (paired over tasks,"
        f" p < {paired.LEVEL:g})."
    )


def _stopped(results: Results, setting: Setting, sizes: Sizes) -> str:
    lines = [
        f"- {LABELS[name]}: {stopped}"
        for name in sizes.methods
        if (stopped := results[cells.key(setting, name)]["training"]["stopped"])
    ]
    return "Runs that ended early:\n\n" + "\n".join(lines) if lines else ""
