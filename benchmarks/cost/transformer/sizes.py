"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        width: Of the transformer, see `problems.transformer`; it has two blocks of two heads.
        length: Characters of a window.
        examples: Training windows.
        batch: Windows of a minibatch.
        validation: Validation windows.
        micro: Micro-batches.
        steps: Of the training.
        slots: Kept states, by Binomial.
        check_steps: Steps of the comparison with unrolled autograd.
        seconds: Time that a process may take.
    """

    width: int
    length: int
    examples: int
    batch: int
    validation: int
    micro: int
    steps: int
    slots: int
    check_steps: int
    seconds: float


SIZES = {
    Preset.SMOKE: Sizes(16, 16, 16, 8, 2, 4, 4, 3, 2, 300.0),
    Preset.QUICK: Sizes(32, 32, 64, 32, 8, 8, 40, 10, 3, 600.0),
    Preset.PAPER: Sizes(64, 64, 2048, 32, 32, 8, 1000, 20, 5, 36_000.0),
}
