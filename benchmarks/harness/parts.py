"""Benchmarks of several experiments, whose reports are put together."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module

import torch

from benchmarks.harness.registry import Benchmark, Settings
from benchmarks.harness.runner import IncompleteError, UnknownCellError
from benchmarks.harness.store import ResultStore

HEADING = re.compile(r"^(#+ )", re.MULTILINE)
PICTURE = re.compile(r"(!\[[^\]]*\]\()(?!https?:)")


def of_parts(name: str, title: str, summary: str, parts: Mapping[str, str]) -> Benchmark:
    """A benchmark made of parts; `--only PART` computes one of them.

    Args:
        name: The benchmark's.
        title: Of the report.
        summary: For the list of benchmarks.
        parts: By name, the module of each: its `run(settings)` writes `report.md`. They are
            imported when they run, so that child processes start without their plots.
    """
    return Benchmark(name, summary, partial(_run, name, title, dict(parts)))


def _run(name: str, title: str, parts: dict[str, str], settings: Settings) -> None:
    chosen = {settings.only: parts[settings.only]} if settings.only in parts else parts
    only = "" if settings.only in parts else settings.only
    unknown: list[UnknownCellError] = []
    missing: list[IncompleteError] = []
    for part, module in chosen.items():
        own = replace(settings, store=_store(settings, part), only=only)
        try:
            with _settings_of_torch():
                import_module(module).run(own)
        except UnknownCellError as error:
            unknown.append(error)
        except IncompleteError as error:
            missing.append(error)
    if len(unknown) == len(chosen):
        raise UnknownCellError(f"{unknown[0]} The parts are {', '.join(parts)}.")
    if missing:
        raise missing[0]
    _join(name, title, parts, settings)


@contextmanager
def _settings_of_torch() -> Generator[None]:
    """Set back the default dtype and the number of threads, which a part may choose."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _join(name: str, title: str, parts: dict[str, str], settings: Settings) -> None:
    """Write one report from those of the parts that have been computed."""
    found = {part: _store(settings, part).directory / "report.md" for part in parts}
    texts = {part: path.read_text("utf-8") for part, path in found.items() if path.is_file()}
    lacking = [part for part in parts if part not in texts]
    contents = "\n".join(f"- {_title(text)} (`--only {part}`)" for part, text in texts.items())
    head = f"# {title}\n\nThe parts of `python -m benchmarks {name}`:\n\n{contents}"
    if lacking:
        head += f"\n\nNot computed yet: {', '.join(lacking)}."
    settings.store.write_text("report.md", "\n\n".join([head, *map(_below, texts.items())]))


def _store(settings: Settings, part: str) -> ResultStore:
    return ResultStore(settings.store.directory / part)


def _title(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def _below(entry: tuple[str, str]) -> str:
    """A part's report one level further down, its pictures found from one folder up."""
    part, text = entry
    return PICTURE.sub(rf"\g<1>{part}/", HEADING.sub(r"#\1", text))
