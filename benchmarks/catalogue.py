"""The registered benchmarks, in the order in which they are listed."""

from __future__ import annotations

BENCHMARKS: tuple[str, ...] = (
    "benchmarks.accuracy_vs_checkpoints:BENCHMARK",
    "benchmarks.regression:BENCHMARK",
    "benchmarks.collaborative_filtering:BENCHMARK",
    "benchmarks.few_shot_images:BENCHMARK",
    "benchmarks.cost:BENCHMARK",
    "benchmarks.bilevel:BENCHMARK",
    "benchmarks.peers:BENCHMARK",
    "benchmarks.tolerance:BENCHMARK",
)
"""Import strings `package.module:NAME`, each naming a `harness.registry.Benchmark`."""
