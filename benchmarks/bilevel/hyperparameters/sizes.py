"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        rules: Names of `training.RULES`.
        seeds: Repetitions, each with other examples.
        steps: Steps of a training.
        batch: Examples of a minibatch.
        train: Training examples.
        validation: Validation examples.
        test: Test examples, by the same writers as the others.
        updates: Updates of the hyperparameters.
        retrainings: Trainings that found hyperparameters are judged by.
        ridge_steps: Inner steps of ridge regression, increasing.
        compile: How kernels are run.
    """

    rules: tuple[str, ...]
    seeds: int
    steps: int
    batch: int
    train: int
    validation: int
    test: int
    updates: int
    retrainings: int
    ridge_steps: tuple[int, ...]
    compile: str | None


SIZES = {
    Preset.SMOKE: Sizes(("sgd",), 1, 15, 20, 60, 30, 30, 2, 1, (10, 100), None),
    Preset.QUICK: Sizes(
        ("sgd", "adamw"), 1, 120, 50, 200, 500, 500, 15, 3, (10, 30, 100, 300, 1000), "trace"
    ),
    Preset.PAPER: Sizes(
        ("sgd", "adamw"), 5, 500, 50, 200, 500, 500, 50, 5,
        (10, 30, 100, 300, 1000, 3000, 10_000), "inductor",
    ),
}  # fmt: skip
