"""Few-shot collaborative filtering (the paper's Tables 1 and 2)."""

from __future__ import annotations

from benchmarks.collaborative_filtering import report
from benchmarks.harness.registry import Benchmark

BENCHMARK = Benchmark(
    "collaborative-filtering", "few-shot prediction of a user's ratings (paper: Tables 1 and 2)",
    report.run,
)  # fmt: skip
