"""Ten synthetic digits that a network can be trained on in place of a thousand real ones."""

from __future__ import annotations

from benchmarks.distillation import report
from benchmarks.harness.registry import Benchmark

BENCHMARK = Benchmark(
    report.NAME, "ten synthetic training images by the gradient through training (digits)",
    report.run,
)  # fmt: skip
