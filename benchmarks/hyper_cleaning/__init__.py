"""Weights of training examples, some with wrong labels, learned by the gradient of validation."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark
from benchmarks.hyper_cleaning import report

BENCHMARK = Benchmark(
    report.NAME, "wrong labels found by the gradient through training (digits, Omniglot)",
    report.run,
)  # fmt: skip
