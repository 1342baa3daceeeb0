"""Bilevel problems: weights of examples, hyperparameters and images by the exact gradient."""

from __future__ import annotations

from benchmarks.harness.parts import of_parts

BENCHMARK = of_parts(
    "bilevel",
    "Bilevel problems by the gradient through training",
    "wrong labels, hyperparameters and synthetic images, against search with the same budget",
    {
        "cleaning": "benchmarks.bilevel.cleaning.report",
        "hyperparameters": "benchmarks.bilevel.hyperparameters.report",
        "distillation": "benchmarks.bilevel.distillation.report",
    },
)
