"""Every method trained on few-shot tasks of scikit-learn's digits."""

from __future__ import annotations

from benchmarks.digits import report
from benchmarks.harness.registry import Benchmark

BENCHMARK = Benchmark(
    "digits", "every method meta-trained on few-shot classification of handwritten digits",
    report.run,
)  # fmt: skip
