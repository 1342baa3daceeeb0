"""How large the run is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset

FAMILIES = (
    "cosmixture text",
    "cosmixture code",
    "alpine",
    "digits mlp",
    "digits conv",
    "quadratic",
)
OTHERS = (
    "logistic",
    "poisson",
    "log-cosh",
    "factorisation",
    "iris",
    "wine",
    "breast cancer",
)


@dataclass(frozen=True)
class Sizes:
    r"""The sizes of a run.

    Attributes:
        families: Names in `FAMILIES` or `OTHERS`, taken in turn.
        problems: How many problems.
        tolerances: What `from_tolerance` is given.
        calls: Warm calls after the cold one.
        counted: How many of the last of them the warm cost is the mean of.
        stiffness: The range of $\rho T$, with $\rho$ at the start.
        shots: Training points of a regression task, as many for validation.
        compile: How kernels are run on long horizons. `StabilizedRK` makes the stages of a pull
            again then, so that its counts are larger; others do not depend on it.
    """

    families: tuple[str, ...]
    problems: int
    tolerances: tuple[float, ...]
    calls: int
    counted: int
    stiffness: tuple[float, float]
    shots: int
    compile: str


LONG = 30.0
r"""$\rho T$ from which on compiled kernels save more time than they take to be made."""

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
SIZES = {
    Preset.SMOKE: Sizes(
        ("quadratic", "cosmixture code"), 2, (1e-1, 1e-2), 3, 2, (2.0, 4.0), 8, "trace"
    ),
    Preset.QUICK: Sizes(OTHERS, 21, TOLERANCES[:3], 29, 10, (8.0, 150.0), 25, "trace"),
    Preset.PAPER: Sizes(
        (*FAMILIES, *OTHERS), 104, TOLERANCES, 29, 10, (2.0, 500.0), 50, "inductor"
    ),
}
