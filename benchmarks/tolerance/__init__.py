"""Choices made from a tolerance, and error estimates, against the true error."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark
from benchmarks.tolerance import report

BENCHMARK = Benchmark(
    report.NAME, "from_tolerance and estimate_error against the true error, on random problems",
    report.run,
)  # fmt: skip
