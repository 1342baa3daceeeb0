"""How data are prepared and learned from in each of the papers: protocols are never mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.problems.few_shot import Handling

OMNIGLOT, MINI_IMAGENET = "omniglot", "mini-imagenet"
MADE_UP = "made-up"
"""Pictures that are drawn here, for a smoke run without data."""


@dataclass(frozen=True)
class Protocol:
    """A way to divide classes, to draw tasks and to train on them.

    Attributes:
        name: As it stands in reports.
        classes: For meta-training, validation and the meta-test; None for the split's file.
        handling: What is done to the pictures.
        net: A name in `conv_nets.NETS`.
        lr: The inner learning rate.
        steps: Inner steps in meta-training.
        test_steps: Steps of gradient descent at the meta-test.
        tasks: Tasks of a meta-batch.
        queries: Validation pictures per class in meta-training; None for as many as shots. At
            the meta-test there are always as many.
        strength: The proximal weight of iMAML.
        clip: The largest norm of a meta-gradient; None for no limit.
    """

    name: str
    classes: tuple[int, int, int] | None
    handling: Handling
    net: str
    lr: float
    steps: int
    test_steps: int
    tasks: int
    queries: int | None = None
    strength: float = 2.0
    clip: float | None = None


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

HORIZON_STEPS = 5
"""Steps of gradient descent in the small-budget comparison: T = 0.5 at a rate of 0.1."""

_SHORT = {"lr": 0.1, "steps": HORIZON_STEPS, "test_steps": HORIZON_STEPS, "queries": None}

BUDGET: dict[str, Protocol] = {
    OMNIGLOT: replace(_IMAML, name="imaml, short", tasks=2, **_SHORT),
    MINI_IMAGENET: replace(_MINI, name="maml, short", tasks=2, clip=None, **_SHORT),
    MADE_UP: replace(
        _IMAML, name="imaml, short", classes=(8, 0, 6), tasks=2, **_SHORT
    ),
}  # fmt: skip
"""What a small budget leaves of them: short inner loops, small meta-batches, one query each."""
