"""How large each preset is."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import methods
from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Setting:
    """One panel of the paper's Figure 2.

    Attributes:
        family: "cosmixture" or "alpine".
        shots: Training points per task, and as many validation points.
        protocol: "code" or "text" (see `benchmarks.problems.episodes`).
        seeds: Seeds of initialisation and meta-batches.
    """

    family: str
    shots: int
    protocol: str
    seeds: tuple[int, ...] = (0,)

    @property
    def name(self) -> str:
        """As it stands in reports and cell keys."""
        return f"{self.family} {self.shots}shot-{self.shots}val ({self.protocol})"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        settings: The panels.
        methods: Names of methods.
        updates: Meta-updates.
        steps: Inner steps of a setting by its number of shots (MAML takes a tenth).
        epochs: Epochs of the meta-test with Adam.
        every: Epochs and steps between two points of a curve.
        compile: How kernels are run.
    """

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    updates: int
    steps: dict[int, int]
    epochs: int
    every: int
    compile: str | None


_ALL = (*methods.PAPER, *methods.OTHERS)

SIZES = {
    Preset.SMOKE: Sizes(
        (Setting("cosmixture", 10, "code"),), ("a-maml", "maml", "comln"), 2, {10: 10}, 4, 2, None
    ),
    Preset.QUICK: Sizes(
        (Setting("cosmixture", 20, "code"), Setting("alpine", 20, "text")),
        _ALL, 40, {20: 40}, 100, 20, "trace",
    ),
    Preset.PAPER: Sizes(
        (
            Setting("cosmixture", 50, "code", (0, 1, 2)),
            Setting("cosmixture", 100, "code"),
            Setting("alpine", 50, "code"),
            Setting("alpine", 100, "code"),
        ),
        methods.PAPER, 5000, {50: 200, 100: 500}, 1000, 10, "inductor",
    ),
}  # fmt: skip
