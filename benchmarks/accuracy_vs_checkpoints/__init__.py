"""How accurate the gradient of a long inner optimisation is, and what it costs."""

from __future__ import annotations

from benchmarks.harness.parts import of_parts

BENCHMARK = of_parts(
    "accuracy-vs-checkpoints",
    "Accuracy of the gradient",
    "gradient error against kept states, evaluations and seconds (paper: Tables 4, 5), by method",
    {
        "checkpoints": "benchmarks.accuracy_vs_checkpoints.report",
        "methods": "benchmarks.accuracy_vs_checkpoints.methods.report",
    },
)
