"""The same meta-gradient by odeopt, by other packages and by hand: seconds, memory and errors."""

from __future__ import annotations

from benchmarks.harness.registry import Benchmark, Settings


def _run(settings: Settings) -> None:
    from benchmarks.peers import report  # noqa: PLC0415  (children start without its plots)

    report.run(settings)


BENCHMARK = Benchmark(
    "peers", "the same meta-gradient by odeopt, other packages, by hand and by bare kernels", _run
)
