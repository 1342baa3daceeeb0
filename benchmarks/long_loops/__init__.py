"""What a meta-gradient costs in plain trainings, for long loops and for many parameters."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark, Settings


def _run(settings: Settings) -> None:
    from benchmarks.long_loops import report  # noqa: PLC0415  (children start without its plots)

    report.run(settings)


BENCHMARK = Benchmark(
    "long-loops", "seconds and bytes of a meta-gradient over those of plain training", _run
)
