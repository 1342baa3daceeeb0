"""How large each part is under each preset."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.registry import Preset


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        table_4_states: numbers of states of Table 4.
        table_5_horizons: horizons of Table 5.
        table_5_states: numbers of states of Table 5.
        seeds: random starts of Tables 4 and 5.
        horizons: longer horizons.
        horizon_states: numbers of kept states there.
        horizon_seeds: random starts there.
        input_states: numbers of kept states on real inputs.
        precision_steps: numbers of steps in the work-precision diagrams.
        repeats: timed runs per configuration.
    """

    table_4_states: tuple[int, ...]
    table_5_horizons: tuple[float, ...]
    table_5_states: tuple[int, ...]
    seeds: int
    horizons: tuple[float, ...]
    horizon_states: tuple[int, ...]
    horizon_seeds: int
    input_states: tuple[int, ...]
    precision_steps: tuple[int, ...]
    repeats: int


SIZES = {
    Preset.SMOKE: Sizes(
        (10, 20), (0.5,), (10,), 2, (1.0,), (16,), 2, (8,), (16,), 1
    ),
    Preset.QUICK: Sizes(
        (10, 20, 50), (0.5,), (10, 50), 5, (5.0,), (8, 32), 2, (16,),
        (16, 64), 1,
    ),
    Preset.PAPER: Sizes(
        (10, 20, 50, 100, 200, 500, 1000), (0.1, 0.3, 0.5), (10, 20, 50, 100, 200, 500), 20,
        (2.0, 5.0, 20.0, 60.0, 100.0), (32, 128, 512), 3, (8, 32, 128), (16, 32, 64, 128, 256), 2,
    ),
}  # fmt: skip
