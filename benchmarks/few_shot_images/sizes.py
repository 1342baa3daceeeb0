"""The papers' protocols, which are never mixed; the settings, their nets and their tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Generator

from benchmarks import methods
from benchmarks.harness.registry import Preset
from benchmarks.problems import models, picture_data
from benchmarks.problems.few_shot import Episodes, Handling, TaskShape
from benchmarks.problems.models import Problem
from benchmarks.problems.picture_data import ClassSplit, Pictures

OMNIGLOT, MINI_IMAGENET = "omniglot", "mini-imagenet"
MADE_UP = "made-up"
"""Pictures that are drawn here, for a smoke run without data."""


@dataclass(frozen=True)
class Protocol:
    """A way to divide classes, to draw tasks and to train on them."""

    name: str  # as it stands in reports
    # for meta-training, validation and the meta-test; None for the split's file
    classes: tuple[int, int, int] | None
    handling: Handling  # what is done to the pictures
    net: str  # a name in `models.NETS`
    lr: float  # the inner learning rate
    steps: int  # inner steps in meta-training
    test_steps: int  # steps of gradient descent at the meta-test
    tasks: int  # tasks of a meta-batch
    # validation pictures per class in meta-training; None for as many as shots. At the meta-test
    # there are always as many.
    queries: int | None = None
    strength: float = 2.0  # the proximal weight of iMAML
    clip: float | None = None  # the largest norm of a meta-gradient; None for no limit


_IMAML = Protocol(
    "imaml", (1200, 0, 423), Handling(rotated=True), "imaml-strided",
    lr=0.1, steps=16, test_steps=16, tasks=32,
)  # fmt: skip
_MAML = Protocol(
    "maml", (1100, 100, 423), Handling(rotated=True, inverted=True), "maml-strided",
    lr=0.4, steps=1, test_steps=10, tasks=32,
)  # fmt: skip
_MINI = Protocol(
    "maml", None, Handling(), "maml-pooled",
    lr=0.01, steps=5, test_steps=10, tasks=4, queries=15, strength=0.5, clip=10.0,
)  # fmt: skip

PAPERS: dict[tuple[str, str, int], Protocol] = {
    ("imaml", OMNIGLOT, 5): _IMAML,
    ("imaml", OMNIGLOT, 20): replace(_IMAML, steps=25, test_steps=25),
    ("imaml", MINI_IMAGENET, 5): replace(
        _MINI, name="imaml", lr=0.1, steps=10, test_steps=10, clip=None
    ),
    ("maml", OMNIGLOT, 5): _MAML,
    ("maml", OMNIGLOT, 20): replace(_MAML, lr=0.1, steps=5, tasks=16),
    ("maml", MINI_IMAGENET, 5): _MINI,
}
"""The protocols by name, data set and ways.

What no source states: iMAML's rate, meta-batch and number of updates for 20 ways (taken from 5
ways), and all of its mini-ImageNet protocol, whose code was not released. There its strength and
steps are those of a public reimplementation, its net and task shape MAML's. MAML clips each entry
of a mini-ImageNet meta-gradient to +-10; here its norm is limited.
"""

_SHORT = {"lr": 0.1, "steps": 5, "test_steps": 5, "queries": None}  # T = 0.5

BUDGET: dict[str, Protocol] = {
    OMNIGLOT: replace(_IMAML, name="imaml, short", tasks=2, **_SHORT),
    MINI_IMAGENET: replace(_MINI, name="maml, short", tasks=2, clip=None, **_SHORT),
    MADE_UP: replace(
        _IMAML, name="imaml, short", classes=(8, 0, 6), tasks=2, **_SHORT
    ),
}  # fmt: skip
"""What a small budget leaves of them: short inner loops, small meta-batches, one query each."""


@dataclass(frozen=True)
class Contender:
    """A method, and how long its inner loop is."""

    method: str  # a name in `odeopt.METHODS`
    horizon: float | None = None  # T, in place of the protocol's learning rate times steps

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
    """When meta-training ends: at whichever comes first."""

    updates: int  # meta-updates
    evaluations: float = math.inf  # gradient evaluations per task of the meta-batch (see `budget`)

    def part(self, share: float) -> Length:
        """The first part of it."""
        return Length(math.ceil(share * self.updates), share * self.evaluations)


@dataclass(frozen=True)
class Setting:
    """One table of the report."""

    data: str  # a data set
    protocol: Protocol  # how it is used
    ways: int  # classes of a task
    shots: int  # training pictures of each
    contenders: tuple[Contender, ...]  # who is trained
    length: Length  # how long each of them is
    looks: int  # tasks at each look at the accuracy during meta-training
    norm: str = "batch"  # a name in `models.NORMS`
    activation: str = "relu"  # a name in `models.ACTIVATIONS`

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        how = self.protocol.name
        if (self.norm, self.activation) != ("batch", "relu"):
            how += f", {self.norm} norm, {self.activation}"
        return f"{self.data} {self.ways}-way {self.shots}-shot ({how})"

    @property
    def queries(self) -> int:
        """Validation pictures per class in meta-training."""
        return self.shots if self.protocol.queries is None else self.protocol.queries


@dataclass(frozen=True)
class Kinks:
    """The measurement of what a kinked activation does to the gradient."""

    activations: tuple[str, ...]  # names in `models.ACTIVATIONS`
    steps: tuple[int, ...]  # steps of Runge-Kutta 4 over the horizon, each twice the one before
    tasks: int  # how many tasks


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    settings: tuple[Setting, ...]  # the tables
    tests: int  # tasks of the meta-test; 600 in the papers
    compile: str | None  # how kernels are run in meta-training
    flow_compile: str | None  # the same for COMLN, whose flow consists of many small operations
    kinks: Kinks | None  # see `Kinks`; None to leave it out


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
        600, None, "inductor", Kinks(("relu", "gelu", "softplus"), (10, 20, 40), 2),
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
        600, "trace", "inductor", Kinks(("relu", "gelu", "softplus"), (10, 20, 40, 80), 4),
    ),
}  # fmt: skip


def resolve(preset: Preset, folder: Path | None) -> Sizes:
    """The sizes of a preset; a smoke run takes made-up pictures where its data is not there."""
    sizes = SIZES[preset]
    there = folder is not None and (folder / picture_data.OMNIGLOT_FILE).is_file()
    if there or preset is not Preset.SMOKE:
        return sizes
    settings = (replace(one, data=MADE_UP, protocol=BUDGET[MADE_UP]) for one in sizes.settings)
    return replace(sizes, settings=tuple(settings))


def problem(setting: Setting) -> Problem:
    """The net that the protocol names, with the setting's normalisation and activation."""
    norm, activation = models.NORMS[setting.norm], models.ACTIVATIONS[setting.activation]
    net = models.NETS[setting.protocol.net](setting.ways, norm, activation)
    return Problem(net, models.cross_entropy)


SPLIT_SEED, TRAIN_SEED, LOOK_SEED, TEST_SEED = 0, 1, 2, 3
"""The same tasks for every method."""


@cache
def load(data: str, folder: Path | None) -> tuple[Pictures, ClassSplit | None]:
    """Pictures, and their split where the data set has one of its own."""
    if data == MADE_UP:
        return made_up(), None
    if data == MINI_IMAGENET:
        return picture_data.mini_imagenet(folder)
    return picture_data.omniglot(folder), None


def made_up() -> Pictures:
    """A random pattern for each of 14 classes, and noise on it in each of 6 pictures."""
    source = Generator().manual_seed(0)
    patterns = 200 * (torch.rand(14, 1, 1, 28, 28, generator=source) < 0.3)
    noise = torch.randint(56, (14, 6, 1, 28, 28), generator=source)
    return picture_data.stored((patterns + noise).to(torch.uint8))


def divided(setting: Setting, folder: Path | None) -> tuple[Pictures, ClassSplit]:
    """A setting's pictures and the classes of each part."""
    pictures, split = load(setting.data, folder)
    if split is None:
        classes = setting.protocol.classes
        assert classes is not None, "only data sets with a split of their own have none"
        split = picture_data.shuffled(pictures.classes, *classes, SPLIT_SEED)
    return pictures, split


def episodes(setting: Setting, folder: Path | None, part: str, tasks: int) -> Episodes:
    """Meta-batches of so many tasks for a part, "train", "look" or "test".

    Looks are on validation classes, or, where a protocol has none, on those of the test, by which
    nothing is chosen. But in meta-training there are as many validation pictures as training
    pictures, as in the papers' tests.
    """
    pictures, split = divided(setting, folder)
    classes, queries, seed = {
        "train": (split.train, setting.queries, TRAIN_SEED),
        "look": (split.validation or split.test, setting.shots, LOOK_SEED),
        "test": (split.test, setting.shots, TEST_SEED),
    }[part]
    shape = TaskShape(setting.ways, setting.shots, queries)
    return Episodes(pictures, classes, shape, tasks, seed, setting.protocol.handling)
