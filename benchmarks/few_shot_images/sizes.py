"""How large each preset is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import methods
from benchmarks.few_shot_images.protocols import (
    BUDGET,
    MADE_UP,
    MINI_IMAGENET,
    OMNIGLOT,
    PAPERS,
    Protocol,
)  # fmt: skip
from benchmarks.harness.registry import Preset
from benchmarks.problems import omniglot


@dataclass(frozen=True)
class Contender:
    """A method, and how long its inner loop is.

    Attributes:
        method: A name in `odeopt.METHODS`.
        horizon: T, in place of the protocol's learning rate times steps.
    """

    method: str
    horizon: float | None = None

    @property
    def name(self) -> str:
        """As it stands in cell keys."""
        return self.method if self.horizon is None else f"{self.method} T={self.horizon:g}"

    @property
    def label(self) -> str:
        """As it stands in reports."""
        label = methods.LABELS[self.method]
        return label if self.horizon is None else f"{label}, T = {self.horizon:g}"


@dataclass(frozen=True)
class Length:
    """When meta-training ends: at whichever comes first.

    Attributes:
        updates: Meta-updates.
        evaluations: Gradient evaluations per task of the meta-batch (see `costs`).
    """

    updates: int
    evaluations: float = math.inf

    def part(self, share: float) -> Length:
        """The first part of it."""
        return Length(math.ceil(share * self.updates), share * self.evaluations)


@dataclass(frozen=True)
class Setting:
    """One table of the report.

    Attributes:
        data: A data set.
        protocol: How it is used.
        ways: Classes of a task.
        shots: Training pictures of each.
        contenders: Who is trained.
        length: How long each of them is.
        looks: Tasks at each look at the accuracy during meta-training.
        norm: A name in `conv_nets.NORMS`.
        activation: A name in `conv_nets.ACTIVATIONS`.
    """

    data: str
    protocol: Protocol
    ways: int
    shots: int
    contenders: tuple[Contender, ...]
    length: Length
    looks: int
    norm: str = "batch"
    activation: str = "relu"

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        variant = "" if (self.norm, self.activation) == ("batch", "relu") else (
            f", {self.norm} norm, {self.activation}"
        )  # fmt: skip
        protocol = self.protocol.name
        return f"{self.data} {self.ways}-way {self.shots}-shot ({protocol}{variant})"

    @property
    def queries(self) -> int:
        """Validation pictures per class in meta-training."""
        return self.shots if self.protocol.queries is None else self.protocol.queries


@dataclass(frozen=True)
class Kinks:
    """The measurement of what a kinked activation does to the gradient.

    Attributes:
        activations: Names in `conv_nets.ACTIVATIONS`.
        steps: Steps of Runge-Kutta 4 over the horizon, each twice the one before.
        tasks: How many tasks.
    """

    activations: tuple[str, ...]
    steps: tuple[int, ...]
    tasks: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        settings: The tables.
        tests: Tasks of the meta-test.
        compile: How kernels are run in meta-training.
        flow_compile: The same for COMLN, whose flow consists of many small operations.
        kinks: See `Kinks`; None to leave it out.
    """

    settings: tuple[Setting, ...]
    tests: int
    compile: str | None
    flow_compile: str | None
    kinks: Kinks | None


TESTS = 600
"""Tasks of the meta-test, as in the papers."""

BUDGET_EVALUATIONS = {OMNIGLOT: 4800.0, MINI_IMAGENET: 600.0}
"""Gradient evaluations per task of the meta-batch in the small-budget comparison.

On one core of an AMD EPYC a gradient takes about 5 ms (Omniglot) and 36 ms (mini-ImageNet) per
task; with the meta-test all methods take about an hour.
"""

_EVERY = tuple(Contender(name) for name in (*methods.PAPER, *methods.OTHERS))
_HORIZONS = tuple(Contender("a-maml", horizon) for horizon in (0.5, 1.0, 5.0))
_FULL = (*_HORIZONS, *(one for one in _EVERY if one.method != "a-maml"))
_PAPER_UPDATES = {"imaml": 20_000, "maml": 60_000}


def _short(data: str, names: tuple[str, ...], evaluations: float, looks: int) -> Setting:
    contenders = tuple(one for one in _EVERY if not names or one.method in names)
    return Setting(data, BUDGET[data], 5, 1, contenders, Length(10**6, evaluations), looks)


def _smooth(protocol: str) -> Setting:
    """The variant whose flow has no kinks and whose predictions do not depend on each other."""
    plain = _full(protocol, OMNIGLOT, 5, 1)
    few = tuple(one for one in _FULL if one.method in ("a-maml", "maml", "imaml-gd"))
    return replace(plain, contenders=few, norm="group", activation="softplus")


def _full(protocol: str, data: str, ways: int, shots: int) -> Setting:
    length = Length(_PAPER_UPDATES[protocol])
    return Setting(data, PAPERS[protocol, data, ways], ways, shots, _FULL, length, looks=100)


SIZES = {
    Preset.SMOKE: Sizes(
        (_short(OMNIGLOT, ("a-maml", "maml", "comln"), 25, 4),),
        8, None, None, Kinks(("softplus",), (1, 2), 1),
    ),
    Preset.QUICK: Sizes(
        (_short(OMNIGLOT, (), 250, 20),), 50, None, "trace", Kinks(("relu", "softplus"), (5, 10), 1)
    ),
    Preset.BUDGET: Sizes(
        tuple(
            _short(data, (), BUDGET_EVALUATIONS[data], looks)
            for data, looks in ((OMNIGLOT, 50), (MINI_IMAGENET, 16))
        ),
        TESTS, None, "inductor", Kinks(("relu", "gelu", "softplus"), (10, 20, 40), 2),
    ),
    Preset.PAPER: Sizes(
        (
            *(
                _full(protocol, data, ways, shots)
                for protocol in ("imaml", "maml")
                for data, ways in ((OMNIGLOT, 5), (OMNIGLOT, 20), (MINI_IMAGENET, 5))
                for shots in (1, 5)
            ),
            _smooth("imaml"),
        ),
        TESTS, "trace", "inductor", Kinks(("relu", "gelu", "softplus"), (10, 20, 40, 80), 4),
    ),
}  # fmt: skip


def resolve(preset: Preset, folder: Path | None) -> Sizes:
    """The sizes of a preset; a smoke run takes made-up pictures where its data is not there."""
    sizes = SIZES[preset]
    if preset is not Preset.SMOKE or (folder is not None and (folder / omniglot.FILE).is_file()):
        return sizes
    settings = tuple(
        replace(setting, data=MADE_UP, protocol=BUDGET[MADE_UP]) for setting in sizes.settings
    )
    return replace(sizes, settings=settings)
