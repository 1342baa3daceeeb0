"""The cells, each a child process, and the report."""

from __future__ import annotations

import math
from functools import partial

from benchmarks.cost.transformer import (
    ACCUMULATED,
    CHECK,
    EPS,
    GRADIENT,
    LR,
    META,
    PEAKS,
    PLAIN,
    SHARE,
    SIZES,
    Sizes,
    measure,
)
from benchmarks.harness import markdown, outline, processes
from benchmarks.harness.costs import MIB
from benchmarks.harness.outline import Cell, Run
from benchmarks.harness.plots import Curve, Labels, curves
from benchmarks.harness.registry import Settings
from benchmarks.problems.transformer import ALPHABET

NAME = "cost --only transformer"
REVISION = 2
"""Raised when what a cell computes changes, so that stored cells are computed anew."""

ALLOWED = 1.5
"""Times the peak of plain training that the gradient may need beside the kept states."""

AGREES = 1e-8
"""Below this relative error the gradient is said to agree with unrolled autograd."""

LABELS = {
    PLAIN: "plain training, whole minibatches",
    ACCUMULATED: "plain training, accumulated gradients of micro-batches",
    META: "the gradient, micro-batches",
}


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plot and `results.json`."""
    sizes = SIZES[settings.preset]
    compute = partial(processes.run, measure, limit=sizes.seconds)
    cells = [
        Cell(kind, partial(compute, kind, sizes, str(settings.device)))
        for kind in (*PEAKS, GRADIENT, CHECK)
    ]
    done = outline.compute(settings, NAME, REVISION, sizes, cells)
    sections = [_head(sizes)]
    if any(cell["outcome"] for cell in done.cells.values()):
        sections.append(outline.without_numbers(done.cells))
    else:
        sections += [_memory(done), _gradient(settings, done), _check(done, sizes)]
    outline.write(settings, "Weights of examples through a transformer's training", done, sections)


def _memory(run: Run) -> str:
    peaks = {kind: run.cells[kind]["bytes"] for kind in PEAKS}
    kept = run.cells[META]["kept_bytes"]
    rows: list[list[markdown.Entry]] = [
        [LABELS[kind], f"{peaks[kind] / MIB:.2f}", f"{peaks[kind] / peaks[PLAIN]:.2f}"]
        for kind in PEAKS
    ]
    rows.append(["of it, kept states", f"{kept / MIB:.2f}", f"{kept / peaks[PLAIN]:.2f}"])
    sentences: list[str] = []
    for kind in (PLAIN, ACCUMULATED):
        limit = ALLOWED * peaks[kind] + kept
        holds = "is within" if peaks[META] <= limit else "exceeds"
        sentences.append(
            f"The gradient's peak {holds} {ALLOWED:g} times that of {LABELS[kind]} plus the kept"
            f" states ({peaks[META] / MIB:.2f} against {limit / MIB:.2f} MiB)."
        )
    table = markdown.table(["", "peak of live tensors, MiB", "of plain training"], rows)
    return f"## Memory\n\n{table}\n{' '.join(sentences)}"


def _gradient(settings: Settings, run: Run) -> str:
    cell = run.cells[GRADIENT]
    harm, shuffled = cell["harm"], cell["shuffled"]
    lines = [
        Curve(label, [i / max(1, len(values) - 1) for i in range(len(values))], sorted(values))
        for label, values in (
            ("shuffled", [h for h, s in zip(harm, shuffled, strict=True) if s]),
            ("others", [h for h, s in zip(harm, shuffled, strict=True) if not s]),
        )
    ]
    labels = Labels("gradient w.r.t. the weights of examples", "share of examples", "gradient")
    curves(settings.store.directory / "weights.png", labels, lines, bottom=None)
    counts = sum(shuffled), len(shuffled) - sum(shuffled)
    chance = math.sqrt((sum(counts) + 1) / (12 * counts[0] * counts[1]))
    difference = cell["gradient_auc"] - cell["loss_auc"]
    verdict = "The gradient tells them better" if difference > 0 else "The loss tells them better"
    if abs(difference) < 2 * chance:
        verdict = "There is no difference to speak of"
    return f"""## The gradient

{SHARE:.0%} of the training windows have their characters shuffled. Ranked by the gradient
of the validation loss w.r.t. their weights, at equal weights, they are told from the others with
AUC {cell["gradient_auc"]:.3f}; ranked by their loss after the same plain training, with
{cell["loss_auc"]:.3f}. {verdict}: the AUC of a random ranking of so many windows is 0.5 with a
standard deviation of {chance:.3f}. Trained by odeopt the validation loss is {cell["value"]:.5f}, by
`torch.optim.Adam` {cell["validation"]:.5f}.

The gradient took {cell["ratio"]:.1f} times as long as plain training with the same micro-batches
(one run of each in one process): {cell["gradient_evaluations"]} gradients and {cell["hvps"]}
Hessian-vector products, {cell["replayed"]} replayed steps.

![gradients](weights.png)"""


def _check(run: Run, sizes: Sizes) -> str:
    error = run.cells[CHECK]["error"]
    verdict = "agrees" if error < AGREES else "DOES NOT AGREE"
    return (
        f"## Check\n\nThrough {sizes.check_steps} steps in float64 the gradient {verdict} with"
        f" unrolled autograd (relative error {markdown.scientific(error)}; agreement means below"
        f" {AGREES:g})."
    )


def _head(sizes: Sizes) -> str:
    return f"""A transformer of two blocks of two heads, width {sizes.width}, predicts the next of
{len(ALPHABET)} characters in windows of {sizes.length} of the reference texts of Python's
`help()`. It is trained on {sizes.examples} windows by {sizes.steps} steps of Adam (learning rate
{LR:g}, eps {EPS:g}), minibatches of {sizes.batch}, each window with a weight of
its own. The gradient of the loss of {sizes.validation} other windows w.r.t. the weights is exact,
with {sizes.slots} kept states (Binomial) and {sizes.micro} micro-batches, float32. The outer loss
is not split into micro-batches.

Each measurement is a process of its own on one thread. Peaks are those of live tensors above those
before."""
