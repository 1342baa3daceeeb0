"""How large each preset is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import methods
from benchmarks.harness.registry import Preset
from benchmarks.problems.rating_files import SOURCES

MADE_UP = "made-up"
"""The name of ratings generated here, for a smoke run without data."""


@dataclass(frozen=True)
class Setting:
    """One column of a table of the paper.

    Attributes:
        data: A name in `SOURCES`, or `MADE_UP`.
        shots: Ratings to adapt to.
        validation: Ratings for validation in meta-training.
        steps: Steps of gradient descent; MAML takes a tenth.
        at_least: How many of the most rated items a retained user rated at least.
    """

    data: str
    shots: int
    validation: int
    steps: int
    at_least: int = 10

    @property
    def split(self) -> str:
        """The data set and the setting, without the steps."""
        return f"{self.data} {self.shots}shot-{self.validation}val"

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        return f"{self.split} {self.steps} steps"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        settings: The columns.
        methods: Names of methods.
        updates: Meta-updates.
        tests: Users for the meta-test.
        epochs: Epochs of the meta-test with Adam.
        every: Steps between two points of a curve.
        compile: How kernels are run.
    """

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    updates: int
    tests: int
    epochs: int
    every: int
    compile: str | None


LITERAL = ("movielens-100k", 20)
"""The paper's words taken literally: the classic data set, users with at least 20 ratings."""

_DATA = (("movielens-small-2016", 10), LITERAL, ("movielens-1m", 10), ("jester-1", 10))
_SHOTS = ((10, 15), (20, 30))
_ALL = (*methods.PAPER, *methods.OTHERS)

SIZES = {
    Preset.SMOKE: Sizes(
        (Setting("movielens-small-2016", 10, 15, 10),),
        ("a-maml", "maml", "comln"), 2, 10, 4, 5, None,
    ),
    Preset.QUICK: Sizes(
        (Setting("movielens-small-2016", 10, 15, 50),), _ALL, 100, 100, 100, 10, "trace"
    ),
    Preset.PAPER: Sizes(
        tuple(
            Setting(data, shots, validation, steps, at_least)
            for data, at_least in _DATA
            for steps in (50, 100)
            for shots, validation in _SHOTS
        ),
        methods.PAPER, 2000, 100, 500, 5, "inductor",
    ),
}  # fmt: skip
"""An update of the six methods takes about 0.2 s in all with "inductor" on one core, so that the
preset "paper" takes about an hour in two processes, with --only 10shot and --only 20shot. With
the paper's 5000 updates it would be two and a half."""


def resolve(preset: Preset, folder: Path | None) -> Sizes:
    """The sizes of a preset; a smoke run takes made-up ratings where its data is not there."""
    sizes = SIZES[preset]
    if preset is not Preset.SMOKE:
        return sizes
    settings = tuple(
        s if folder is not None and (folder / SOURCES[s.data].file).is_file()
        else replace(s, data=MADE_UP)
        for s in sizes.settings
    )  # fmt: skip
    return replace(sizes, settings=settings)
