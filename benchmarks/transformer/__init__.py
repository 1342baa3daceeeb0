"""Weights of examples through the training of a small transformer, with its need of memory."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark, Settings


def _run(settings: Settings) -> None:
    from benchmarks.transformer import report  # noqa: PLC0415  (children start without it)

    report.run(settings)


BENCHMARK = Benchmark(
    "transformer", "weights of examples through the training of a character model, and its memory",
    _run,
)  # fmt: skip
