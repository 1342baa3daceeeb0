"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset

ALL = None
"""In place of the names of lines: all of them."""


@dataclass(frozen=True)
class Check:
    """The sizes of A-MAML against `higher`.

    Attributes:
        steps: Inner steps.
        states: States that A-MAML keeps.
        compile: How A-MAML's kernels are run.
        reference_steps: RK4 steps of the reference.
        repeats: Timed runs of each.
    """

    steps: int
    states: int
    compile: str | None
    reference_steps: int
    repeats: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        steps: Numbers of inner steps.
        lines: Names of the lines that are measured, or `ALL`.
        tasks: Tasks of the meta-update.
        shots: Training points of a task, and as many for validation.
        repeats: Timed runs of a cell, fewer where they take long.
        memory_gib: Memory that one meta-update may need.
        seconds: Time that one cell may take.
        check: The sizes of the comparison with `higher`.
        state_mib: Sizes of states in the solves whose resident memory is looked at.
        state_steps: Their steps.
    """

    steps: tuple[int, ...]
    lines: tuple[str, ...] | None
    tasks: int
    shots: int
    repeats: int
    memory_gib: float
    seconds: float
    check: Check
    state_mib: tuple[float, ...]
    state_steps: int


PAPER_LINES = (
    "a-maml", "a-maml compiled", "a-maml-50", "maml", "maml compiled", "maml-1", "fomaml",
    "reptile", "imaml-gd", "higher", "torchopt",
)  # fmt: skip

SIZES = {
    Preset.SMOKE: Sizes(
        (1, 4), ("higher",), 2, 5, 1, 16.0, 60.0, Check(8, 4, None, 16, 1), (1.0,), 12
    ),
    Preset.QUICK: Sizes(
        (10, 100), PAPER_LINES, 5, 100, 3, 16.0, 60.0, Check(100, 50, "inductor", 128, 3),
        (1.0, 16.0), 30,
    ),
    Preset.PAPER: Sizes(
        (1, 10, 20, 50, 100, 200, 500, 1000, 2000), ALL, 5, 100, 5, 16.0, 200.0,
        Check(500, 50, "inductor", 512, 5), (0.25, 1.0, 4.0, 16.0), 100,
    ),
}  # fmt: skip
