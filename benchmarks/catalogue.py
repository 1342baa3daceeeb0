"""The benchmarks, in the order in which they are listed."""

from __future__ import annotations

from benchmarks.harness.registry import COMMON, Benchmark, Preset

BENCHMARKS = (
    Benchmark(
        "accuracy-vs-checkpoints",
        "gradient error against kept states, evaluations and seconds (paper: Tables 4, 5), by"
        " method",
        title="Accuracy of the gradient",
        parts={
            "checkpoints": "benchmarks.accuracy_vs_checkpoints.report",
            "methods": "benchmarks.accuracy_vs_checkpoints.quality",
        },
    ),
    Benchmark(
        "regression",
        "meta-learned regression of CosMixture and Alpine functions (paper: Figure 2)",
        "benchmarks.regression",
    ),
    Benchmark(
        "collaborative-filtering",
        "few-shot prediction of a user's ratings (paper: Tables 1 and 2)",
        "benchmarks.collaborative_filtering",
    ),
    Benchmark(
        "few-shot-images",
        "few-shot classification of Omniglot and mini-ImageNet (paper: Table 3)",
        "benchmarks.few_shot_images.report",
        (*COMMON, Preset.BUDGET),
    ),
    Benchmark(
        "cost",
        "memory and seconds of an update (paper: Figs. 3, 4), of long loops and of a transformer",
        title="Memory and time of a meta-gradient",
        parts={
            "updates": "benchmarks.cost.updates",
            "long-loops": "benchmarks.cost.long_loops",
            "transformer": "benchmarks.cost.transformer",
        },
    ),
    Benchmark(
        "bilevel",
        "wrong labels, hyperparameters and synthetic images, against search with the same budget",
        title="Bilevel problems by the gradient through training",
        parts={
            "cleaning": "benchmarks.bilevel.cleaning",
            "hyperparameters": "benchmarks.bilevel.hyperparameters",
            "distillation": "benchmarks.bilevel.distillation",
        },
    ),
    Benchmark(
        "peers",
        "the same meta-gradient by odeopt, other packages, by hand and by bare kernels",
        "benchmarks.peers.report",
    ),
    Benchmark(
        "defaults",
        "the gradient through training by default settings, against higher and TorchOpt",
        "benchmarks.defaults",
    ),
    Benchmark(
        "many-losses",
        "the gradients of many outer losses of one training, against that of one",
        "benchmarks.many_losses",
    ),
    Benchmark(
        "tolerance",
        "from_tolerance and estimate_error against the true error, on random problems",
        "benchmarks.tolerance.report",
    ),
)
