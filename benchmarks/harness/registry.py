"""What a benchmark is: modules that are given settings and write a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.harness.store import ResultStore

HEADING = re.compile(r"^(#+ )", re.MULTILINE)
PICTURE = re.compile(r"(!\[[^\]]*\]\()(?!https?:)")


class IncompleteError(RuntimeError):
    """Cells were left out on request, so that there is no report yet."""

    def __init__(self, stored: int, total: int) -> None:
        super().__init__(
            f"{stored} of {total} cells are stored; run the command without --only for the others"
            " and the report"
        )


class UnknownCellError(LookupError):
    """Cells were asked for that the benchmark does not have."""


class Preset(StrEnum):
    """How large a run is; "smoke" only shows that everything runs.

    "budget" compares methods at the same cost; not every benchmark has it.
    """

    SMOKE = "smoke"
    QUICK = "quick"
    PAPER = "paper"
    BUDGET = "budget"


COMMON = (Preset.SMOKE, Preset.QUICK, Preset.PAPER)
"""The presets that every benchmark has."""


@dataclass(frozen=True)
class Settings:
    """What a benchmark is given."""

    preset: Preset
    store: ResultStore  # of its cells and its reports
    data: Path | None  # the folder of the data sets, None where there is none
    device: torch.device
    only: str = ""  # compute cells whose key contains this text only


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark: a module, or several parts whose reports are put together.

    A module's `run(settings)` writes `report.md`. It is imported when it runs. `--only PART`
    computes one of the parts.
    """

    name: str
    summary: str
    module: str = ""
    presets: tuple[Preset, ...] = COMMON
    title: str = ""  # of the report of several parts
    parts: Mapping[str, str] = field(default_factory=dict[str, str])  # their modules by name

    def run(self, settings: Settings) -> None:
        """Write the reports.

        Raises:
            UnknownCellError: `settings.only` names nothing that there is.
            IncompleteError: It left cells out.
        """
        if not self.parts:
            return _run(self.module, settings)
        alone = settings.only in self.parts
        chosen = {settings.only: self.parts[settings.only]} if alone else self.parts
        only = "" if alone else settings.only
        unknown: list[UnknownCellError] = []
        missing: list[IncompleteError] = []
        for part, module in chosen.items():
            try:
                _run(module, replace(settings, store=_store(settings, part), only=only))
            except UnknownCellError as error:
                unknown.append(error)
            except IncompleteError as error:
                missing.append(error)
        if len(unknown) == len(chosen):
            raise UnknownCellError(f"{unknown[0]} The parts are {', '.join(self.parts)}.")
        if missing:
            raise missing[0]
        return self._join(settings)

    def _join(self, settings: Settings) -> None:
        """Write one report from those of the parts that have been computed."""
        paths = {part: _store(settings, part).directory / "report.md" for part in self.parts}
        texts = {part: path.read_text("utf-8") for part, path in paths.items() if path.is_file()}
        lacking = [part for part in self.parts if part not in texts]
        titles = {part: text.splitlines()[0].removeprefix("# ") for part, text in texts.items()}
        contents = "\n".join(f"- {title} (`--only {part}`)" for part, title in titles.items())
        head = f"# {self.title}\n\nThe parts of `python -m benchmarks {self.name}`:\n\n{contents}"
        if lacking:
            head += f"\n\nNot computed yet: {', '.join(lacking)}."
        # each a level further down, its pictures found from one folder up
        below = [
            PICTURE.sub(rf"\g<1>{part}/", HEADING.sub(r"#\1", text)) for part, text in texts.items()
        ]
        settings.store.write_text("report.md", "\n\n".join([head, *below]))


def _run(module: str, settings: Settings) -> None:
    """Run a module; the default dtype and the number of threads, which it may choose, go back."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        import_module(module).run(settings)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _store(settings: Settings, part: str) -> ResultStore:
    return ResultStore(settings.store.directory / part)
