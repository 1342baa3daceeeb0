"""Few-shot classification of pictures (the paper's Table 3)."""

from __future__ import annotations

from benchmarks.few_shot_images import report
from benchmarks.harness.registry import COMMON, Benchmark, Preset

BENCHMARK = Benchmark(
    "few-shot-images", "few-shot classification of Omniglot and mini-ImageNet (paper: Table 3)",
    report.run, (*COMMON, Preset.BUDGET),
)  # fmt: skip
