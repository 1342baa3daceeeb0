"""How good each method's meta-gradient is, and what it costs, against the horizon."""

from __future__ import annotations

from benchmarks.gradient_quality import report
from benchmarks.harness.registry import Benchmark

BENCHMARK = Benchmark(
    "gradient-quality",
    "every method's meta-gradient against its own target and the flow's, by horizon",
    report.run,
)
