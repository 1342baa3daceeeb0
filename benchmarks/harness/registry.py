"""What a benchmark is, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.harness.store import ResultStore
from odeopt.tools.keywords import unknown


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
    """What a benchmark is given.

    Attributes:
        preset: The size of the run.
        store: Where its cells and its reports go.
        data: The folder of the data sets, None where there is none.
        device: Where to compute.
        only: Compute cells whose key contains this text only.
    """

    preset: Preset
    store: ResultStore
    data: Path | None
    device: torch.device
    only: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark; `run` writes its reports into the store of its settings."""

    name: str
    summary: str
    run: Callable[[Settings], None]
    presets: tuple[Preset, ...] = COMMON


class UnknownBenchmarkError(LookupError):
    """A benchmark was asked for that is not registered."""


def load(imports: Sequence[str]) -> tuple[Benchmark, ...]:
    """Import the benchmarks named by strings `package.module:NAME`.

    Raises:
        TypeError: A string names something else than a `Benchmark`.
        ValueError: Two benchmarks have the same name.
    """
    benchmarks = tuple(_resolve(entry) for entry in imports)
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {', '.join(sorted(names))}")
    return benchmarks


def find(name: str, benchmarks: Sequence[Benchmark]) -> Benchmark:
    """The benchmark of a name.

    Raises:
        UnknownBenchmarkError: There is none; the message lists those that are there.
    """
    for benchmark in benchmarks:
        if benchmark.name == name:
            return benchmark
    known = [benchmark.name for benchmark in benchmarks]
    raise UnknownBenchmarkError(unknown("benchmark", [name], known))


def _resolve(entry: str) -> Benchmark:
    module, _, attribute = entry.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, Benchmark):
        raise TypeError(f"{entry} is not a Benchmark but {type(found).__name__}")
    return found
