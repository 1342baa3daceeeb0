"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Case:
    """A data set and the kind of its wrong labels.

    Attributes:
        data: "digits" or "omniglot".
        kind: See `classification.corrupt`.
        share: Of wrong labels.
    """

    data: str
    kind: str
    share: float

    def __str__(self) -> str:
        return f"{self.data} {self.kind} {self.share:g}"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        cases: What is cleaned.
        seeds: Repetitions, each with other examples and other wrong labels.
        train: Training examples (of Omniglot: drawings of each character).
        validation: Validation examples (likewise).
        batch: Examples of a minibatch; no choice of examples has fewer.
        steps: Steps of a training.
        updates: Updates of the weights.
        retrainings: Trainings that a choice of examples is judged by.
        compile: How kernels are run.
    """

    cases: tuple[Case, ...]
    seeds: int
    train: dict[str, int]
    validation: dict[str, int]
    batch: int
    steps: int
    updates: int
    retrainings: int
    compile: str | None


UNIFORM, NEXT = Case("digits", "uniform", 0.5), Case("digits", "next", 0.4)
DRAWN = {"omniglot": 12, "digits": 1000}
HELD = {"omniglot": 4, "digits": 100}
SIZES = {
    Preset.SMOKE: Sizes((UNIFORM,), 1, {"digits": 100}, {"digits": 30}, 20, 20, 2, 1, None),
    Preset.QUICK: Sizes((UNIFORM, NEXT), 1, DRAWN, HELD, 100, 200, 25, 3, "trace"),
    Preset.PAPER: Sizes(
        (UNIFORM, NEXT, Case("omniglot", "uniform", 0.5)), 5, DRAWN, HELD, 100, 300, 60, 5,
        "inductor",
    ),
}  # fmt: skip
