"""What one meta-update costs in memory and time, against the number of inner steps."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark, Settings


def _run(settings: Settings) -> None:
    from benchmarks.cost import report  # noqa: PLC0415  (children start without its plots)

    report.run(settings)


BENCHMARK = Benchmark(
    "cost", "memory and seconds of one meta-update against inner steps (paper: Figs. 3, 4)", _run
)
