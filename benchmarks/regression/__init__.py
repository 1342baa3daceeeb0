"""Meta-learned regression of 2D functions (the paper's Figure 2)."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark
from benchmarks.regression import report

BENCHMARK = Benchmark(
    "regression", "meta-learned regression of CosMixture and Alpine functions (paper: Figure 2)",
    report.run,
)  # fmt: skip
