"""Learning rates and regularisation by the gradient of validation, against random search."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark
from benchmarks.hyperparameters import report

BENCHMARK = Benchmark(
    report.NAME, "learning rates and weight decays by gradient against random search (digits)",
    report.run,
)  # fmt: skip
