"""The report of the benchmark."""

from __future__ import annotations

from statistics import fmean, median, pstdev
from typing import Any

from benchmarks import budget
from benchmarks.bilevel import descent
from benchmarks.bilevel.hyperparameters import cells, contenders, training
from benchmarks.bilevel.hyperparameters.sizes import SIZES, Sizes
from benchmarks.bilevel.hyperparameters.training import RULES
from benchmarks.harness import markdown, outline
from benchmarks.harness.outline import Run
from benchmarks.harness.plots import Labels, Series, loglog
from benchmarks.harness.registry import Settings
from benchmarks.problems import ridge

NAME = "bilevel --only hyperparameters"
REVISION = 2
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

LABELS = {
    "middle": "the middle of the ranges",
    "entry": "gradient, a weight decay per entry",
    "tensor": "gradient, a weight decay per tensor",
    "few": "random search, 3 numbers",
    "all": "random search, every knot and tensor",
}
GRADIENTS, SEARCHES = ("entry", "tensor"), ("few", "all")
AGREES = 1e-6
"""Below this relative error the hypergradient of ridge regression is said to agree."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = cells.cells(settings, sizes)
    done = outline.compute_alone(settings, NAME, REVISION, sizes, chosen)
    errors = [done.cells[cells.ridge_key(steps)] for steps in sizes.ridge_steps]
    loglog(
        settings.store.directory / "ridge.png",
        Labels("ridge regression", "inner steps", "relative error"),
        [Series("hypergradient", sizes.ridge_steps, [cell["outer"] for cell in errors]),
         Series("parameters", sizes.ridge_steps, [cell["inner"] for cell in errors])],
    )  # fmt: skip
    sections = [_head(sizes), *(_section(done, rule, sizes) for rule in sizes.rules)]
    outline.write(settings, "Hyperparameters by gradient and by random search", done,
                  [*sections, _ridge(errors, sizes)])  # fmt: skip


def _of(run: Run, rule: str, sizes: Sizes) -> list[dict[str, Any]]:
    return [run.cells[cells.contest_key(rule, seed)] for seed in range(sizes.seeds)]


def _section(run: Run, rule: str, sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = []
    for name, label in LABELS.items():
        found = [cell[name] for cell in _of(run, rule, sizes)]
        tests = {k: [fmean(one[k]) for one in found] for k in ("losses", "accuracies")}
        seen = [one["validation loss"] for one in found if "validation loss" in one]
        counts = [len(one["validation losses"]) for one in found if "validation losses" in one]
        rates = ", ".join(f"{rate:.3g}" for rate in found[0]["rates"])
        rows.append([
            label, f"{fmean(seen):.3f}" if seen else "-", _spread(tests["losses"]),
            _spread(tests["accuracies"]), f"{fmean(counts):.0f}" if counts else "-",
            f"{fmean(one['spent'] for one in found):.0f}", rates,
        ])  # fmt: skip
    headers = ["hyperparameters", "validation loss seen", "test loss", "test accuracy", "trainings",
               "budget", "learning rate: first, middle, last"]  # fmt: skip
    ratio = median(cell["gradient in trainings"] for cell in _of(run, rule, sizes))
    return (
        f"## Digits, {RULES[rule].label}\n\n{markdown.table(headers, rows)}\n"
        f"{_verdict(run, rule, sizes)} One gradient took as long as {ratio:.1f} trainings here."
    )


def _verdict(run: Run, rule: str, sizes: Sizes) -> str:
    draws = _of(run, rule, sizes)
    losses = {name: [fmean(cell[name]["losses"]) for cell in draws] for name in LABELS}
    means = {name: fmean(values) for name, values in losses.items()}
    ours, theirs = (min(names, key=means.__getitem__) for names in (GRADIENTS, SEARCHES))
    wins = sum(a < b for a, b in zip(losses[ours], losses[theirs], strict=True))
    best = min(means, key=means.__getitem__)
    return (
        f"The best of the gradient ({LABELS[ours]}) has a test loss of {means[ours]:.3f}, the best"
        f" of random search ({LABELS[theirs]}) {means[theirs]:.3f}; the gradient's is lower in"
        f" {wins} of {len(draws)} draws. The lowest of all is that of: {LABELS[best]}."
    )


def _spread(values: list[float]) -> str:
    spread = f" ± {pstdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _ridge(errors: list[dict[str, Any]], sizes: Sizes) -> str:
    rows: list[list[markdown.Entry]] = [
        [str(steps), cell["outer"], cell["inner"]]
        for steps, cell in zip(sizes.ridge_steps, errors, strict=True)
    ]
    last = errors[-1]["outer"]
    agreement = "agrees with" if last < AGREES else "is not yet at"
    return f"""## Diabetes, ridge regression with one strength per feature

The gradient of the validation loss w.r.t. the {ridge.FEATURES} log-strengths, through
gradient descent on the ridge loss from zero, against the closed form at its minimiser (float64).

{markdown.table(["inner steps", "error of the hypergradient", "error of the parameters"], rows)}
After {sizes.ridge_steps[-1]} steps the hypergradient {agreement} the closed form
({markdown.scientific(last)}; agreement means below {AGREES:g}).

![ridge regression](ridge.png)"""


def _head(sizes: Sizes) -> str:
    return f"""Network 64-32-10 (tanh), float32, trained on {sizes.train} digits for {sizes.steps}
steps with minibatches of {sizes.batch}. The hyperparameters are the learning rates of all steps
(piecewise linear in the logarithm, {training.KNOTS} knots) and weight decays, one per parameter
tensor or one per entry; they are chosen by the loss of {sizes.validation} validation examples.

The gradient contenders make {sizes.updates} updates with Adam ({contenders.UPDATE_SIZE:g} on
logarithms) along the exact gradient through whole trainings ({training.SLOTS} kept states, by
Binomial) from the middle of the ranges in which random search draws, log-uniformly. Random search
draws three numbers (the first and the last learning rate, and one weight decay) or every knot and
tensor's decay, as often as the budget of the costlier gradient allows. Every training has its own
initialisation and minibatches; each contender gives the hyperparameters of the lowest validation
loss that it saw. {descent.RULE} {budget.RULE}

Test losses and accuracies are means over new trainings ({sizes.retrainings} each) from
initialisations and orders of minibatches that no contender has seen, on {sizes.test} other digits
by the same writers, and over draws of the examples ({sizes.seeds}; ± standard deviation)."""
