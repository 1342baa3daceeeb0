"""The report of the few-shot benchmark; what is missing is said, so that it can grow in pieces."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.few_shot_images import cells, sections, text
from benchmarks.few_shot_images.sections import Results
from benchmarks.few_shot_images.sizes import Setting, resolve
from benchmarks.harness import curves, environment, intervals, outline
from benchmarks.harness.curves import Curve
from benchmarks.harness.intervals import Row
from benchmarks.harness.outline import Run
from benchmarks.harness.plots import Labels
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import check_complete, run_cells

NAME = "few-shot-images"


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`.

    Raises:
        IncompleteError: Cells are missing that `settings.only` left out; the report is of those
            that are there.
    """
    torch.set_default_dtype(torch.float32)
    sizes = resolve(settings.preset, settings.data)
    chosen = cells.cells(settings, sizes)
    mark = outline.mark(settings, cells.REVISION, sizes)
    results = run_cells(NAME, chosen, settings.store, mark, settings.only, gaps=True)
    parts = [text.head(settings.preset, sizes), sections.missing(results, chosen)]
    for setting in sizes.settings:
        names = _plots(settings, setting, results)
        parts.append(sections.section(results, setting, settings.preset, sizes.tests))
        parts += [f"![{what}]({name})" for what, name in names.items()]
    parts += [sections.kinked(results, sizes), text.tail(settings.preset, sizes)]
    done = Run(NAME, environment.describe(settings.device), _short(results))
    outline.write(settings, text.TITLE, done, [part.rstrip() for part in parts if part])
    check_complete(results, chosen)


def _short(found: Any) -> Any:
    """The same with accuracies of tasks, which are in float32, as short numbers."""
    if isinstance(found, list):
        return [_short(each) for each in found]
    if not isinstance(found, dict):
        return found
    return {
        key: [round(each, 6) for each in value] if key == "accuracy" else _short(value)
        for key, value in found.items()
    }


def _plots(settings: Settings, setting: Setting, results: Results) -> dict[str, str]:
    """Draws what there is of a setting; the files by what they show."""
    rows, lines = list[Row](), list[Curve]()
    untrained = results.get(cells.key(setting, cells.UNTRAINED))
    if untrained is not None:
        rows.append(Row("not meta-trained", *sections.interval(untrained["accuracy"])))
    for one in setting.contenders:
        cell = results.get(cells.key(setting, one.name))
        if cell is None:
            continue
        spread = sections.interval(cell["accuracy"])
        rows.append(Row(one.label, *spread, emphasised=one.method == "a-maml"))
        training = cell["training"]
        looks = [*training["looks"], {"spent": training["spent"], "accuracy": cell["accuracy"]}]
        found = [sections.interval(look["accuracy"]) for look in looks]
        spent = [look["spent"] for look in looks]
        lines.append(Curve(one.label, spent, [m for m, _ in found], [h for _, h in found]))
    if not lines:
        return {}
    stem = sections.slug(setting)
    names = {"accuracy": f"{stem}-accuracy.png", "along meta-training": f"{stem}-training.png"}
    folder = settings.store.directory
    title, unit = setting.name, "accuracy on new classes, %"
    intervals.intervals(folder / names["accuracy"], title, f"{unit}, 95 % intervals", rows)
    labels = Labels(title, "gradient evaluations per task of the meta-batch", unit)
    curves.curves(folder / names["along meta-training"], labels, lines, bottom=None)
    return names
