"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset

LR = 0.01
"""The learning rate of the gradient descent that every method stands for."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        problems: Names in `problems.PROBLEMS`.
        horizons: T; gradient descent takes T / LR steps.
        tasks: Tasks of the meta-gradient.
        shots: Training points of a regression task, as many for validation; digits have their own.
        rate: RK4 steps of the reference per unit of time.
        repeats: Timed runs of a method.
    """

    problems: tuple[str, ...]
    horizons: tuple[float, ...]
    tasks: int
    shots: int
    rate: int
    repeats: int

    def reference_steps(self, t1: float) -> int:
        """RK4 steps up to t1, an even number."""
        return max(16, 2 * int(self.rate * t1 / 2))


SIZES = {
    Preset.SMOKE: Sizes(("cosmixture",), (0.05,), 2, 4, 64, 1),
    Preset.QUICK: Sizes(("cosmixture", "digits"), (0.5, 2.0), 2, 25, 64, 1),
    Preset.PAPER: Sizes(("cosmixture", "alpine", "digits"), (0.5, 2.0, 5.0, 20.0), 5, 50, 64, 3),
}
