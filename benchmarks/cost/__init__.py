"""What a meta-gradient costs in memory and time: one update, long loops, a transformer."""

from __future__ import annotations

from benchmarks.harness.parts import of_parts

BENCHMARK = of_parts(
    "cost",
    "Memory and time of a meta-gradient",
    "memory and seconds of an update (paper: Figs. 3, 4), of long loops and of a transformer",
    {
        "updates": "benchmarks.cost.updates.report",
        "long-loops": "benchmarks.cost.long_loops.report",
        "transformer": "benchmarks.cost.transformer.report",
    },
)
