"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.harness.registry import Preset


class Point(NamedTuple):
    """One inner loop.

    Attributes:
        parameters: About how many.
        steps: Of the loop.
        slots: Kept states, by Binomial.
    """

    parameters: int
    steps: int
    slots: int


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        longer: Points with more and more steps.
        larger: Points with more and more parameters.
        repeats: Timed runs of a cell, fewer where they take long.
        memory_gib: Memory that one meta-gradient may need.
        seconds: Time that the timed runs of one cell may take; each is run once at least.
        itself: The training by Adam whose gradient is compared with its own kernels.
        compile: How kernels are run.
    """

    longer: tuple[Point, ...]
    larger: tuple[Point, ...]
    repeats: int
    memory_gib: float
    seconds: float
    itself: Point
    compile: str


FEW = 1000
SLOTS = 50


def _longer(*steps: int) -> tuple[Point, ...]:
    return tuple(Point(FEW, count, SLOTS) for count in steps)


def _larger(steps: int, slots: int, *parameters: int) -> tuple[Point, ...]:
    return tuple(Point(count, steps, slots) for count in parameters)


SIZES = {
    Preset.SMOKE: Sizes(
        _longer(60), _longer(60), 1, 1.0, 10.0, Point(FEW, 60, 5), "trace"
    ),
    Preset.QUICK: Sizes(
        _longer(10, 300, 2000), _larger(300, SLOTS, FEW, 10_000, 100_000), 3, 0.2, 20.0,
        Point(FEW, 2000, 20), "inductor",
    ),
    Preset.PAPER: Sizes(
        _longer(10, 100, 1000, 10_000, 100_000),
        _larger(1000, 20, FEW, 10_000, 100_000, 1_000_000, 10_000_000),
        5, 4.0, 120.0, Point(FEW, 100_000, 100), "inductor",
    ),
}  # fmt: skip
