"""How accurate the gradient of a long inner optimisation is, for how many kept states."""

from __future__ import annotations

from benchmarks.accuracy_vs_checkpoints import report
from benchmarks.harness.registry import Benchmark

BENCHMARK = Benchmark(
    "accuracy-vs-checkpoints",
    "gradient error against kept states, gradient evaluations and seconds (paper: Tables 4, 5)",
    report.run,
)
