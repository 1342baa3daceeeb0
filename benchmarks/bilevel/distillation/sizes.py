"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        seeds: Repetitions, each with other real images.
        real: Real training images.
        steps: Steps of a training on ten images.
        updates: Updates of the synthetic images.
        retrainings: Trainings from new initialisations that images are judged by.
        compile: How kernels are run.
    """

    seeds: int
    real: int
    steps: int
    updates: int
    retrainings: int
    compile: str | None


SIZES = {
    Preset.SMOKE: Sizes(1, 100, 10, 2, 2, None),
    Preset.QUICK: Sizes(1, 1000, 200, 60, 10, "trace"),
    Preset.PAPER: Sizes(5, 1000, 500, 1000, 20, "inductor"),
}
