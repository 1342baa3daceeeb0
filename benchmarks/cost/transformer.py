"""Weights of examples through the training of a small transformer, and its need of memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

import odeopt
from benchmarks.harness import costs, markdown, outline, processes
from benchmarks.harness.costs import MIB, LivePeak, once
from benchmarks.harness.outline import Cell, Run
from benchmarks.harness.plots import Curve, Labels, curves
from benchmarks.harness.registry import Preset, Settings
from benchmarks.problems import models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import move
from benchmarks.problems.transformer import ALPHABET, Transformer, Windows, windows
from odeopt.testing import relative_error


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    width: int  # of the transformer, see `problems.transformer`; it has two blocks of two heads
    length: int  # characters of a window
    examples: int  # training windows
    batch: int  # windows of a minibatch
    validation: int  # validation windows
    micro: int  # micro-batches
    steps: int  # of the training
    slots: int  # kept states, by Binomial
    check_steps: int  # steps of the comparison with unrolled autograd
    seconds: float  # time that a process may take


SIZES = {
    Preset.SMOKE: Sizes(16, 16, 16, 8, 2, 4, 4, 3, 2, 300.0),
    Preset.QUICK: Sizes(32, 32, 64, 32, 8, 8, 40, 10, 3, 600.0),
    Preset.PAPER: Sizes(64, 64, 2048, 32, 32, 8, 1000, 20, 5, 36_000.0),
}


LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-2
"""So large an eps, and so small a rate, make the training smooth in the weights of windows: with
0.002 and 1e-4 their gradient is as exact, and tells nothing of them."""
SHARE = 0.25
"""Of training windows whose characters are shuffled."""

Batch = tuple[Tensor, Tensor]
"""Windows and their indices."""


class Problem(NamedTuple):
    """What is trained."""

    model: Transformer  # the network
    params: Parameters  # where it begins
    stream: Callable[[int], Batch]  # minibatches
    train: Windows  # training windows
    validation: Tensor  # validation windows, none shuffled
    sizes: Sizes  # of the run

    def loss(self, params: Parameters, batch: Batch, weights: Tensor) -> Tensor:
        """The mean over a minibatch of weight times loss."""
        codes, index = batch
        return (weights[index] * self.model.losses(params, codes)).mean()

    def outer_loss(self, params: Parameters, codes: Tensor, weights: Tensor) -> Tensor:
        """The mean loss of windows."""
        del weights
        return self.model.losses(params, codes).mean()

    def weights(self) -> Tensor:
        """One each."""
        return torch.ones_like(self.train.codes[:, 0], dtype=self.params["head"].dtype)


def make(sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.float32) -> Problem:
    """The problem of a run."""
    model = Transformer(len(ALPHABET), sizes.length, sizes.width, heads=2, blocks=2)
    train = windows("train", sizes.examples, sizes.length + 1, SHARE, seed=0)
    held = windows("test", sizes.validation, sizes.length + 1, 0.0, seed=1)
    params, codes, held_codes = move((model.init(0), train.codes, held.codes), device, dtype)
    train = train._replace(codes=codes)
    examples = (train.codes, torch.arange(sizes.examples, device=device))
    stream = odeopt.Stream.minibatches(examples, sizes.batch, seed=0)
    return Problem(model, params, stream, train, held_codes, sizes)


def plain_training(problem: Problem, pieces: int) -> Callable[[], Parameters]:
    """The training by `torch.optim.Adam`, with accumulated gradients of so many pieces."""

    def run() -> Parameters:
        params = {name: leaf.clone().requires_grad_() for name, leaf in problem.params.items()}
        adam = torch.optim.Adam(params.values(), lr=LR, betas=BETAS, eps=EPS, foreach=False)
        weights = problem.weights()
        for k in range(problem.sizes.steps):
            adam.zero_grad()
            codes, index = problem.stream(k)
            for part in zip(codes.chunk(pieces), index.chunk(pieces), strict=True):
                (problem.loss(params, part, weights) / pieces).backward()
            adam.step()
        return {name: leaf.detach() for name, leaf in params.items()}

    return run


def meta_gradient(problem: Problem, compile: str | None) -> Callable[[], odeopt.Result]:
    """The exact gradient of the validation loss w.r.t. the weights, with micro-batches."""
    sizes = problem.sizes
    opt = odeopt.ODEOptimizer(
        odeopt.Adam(problem.loss, BETAS, EPS, micro_batches=sizes.micro),
        checkpoints=odeopt.Binomial(sizes.slots), compile=compile,
    )  # fmt: skip
    call = opt.value_and_grad(problem.outer_loss)
    grid = odeopt.TimeGrid.from_lr(LR, sizes.steps)
    stream = odeopt.Stream(problem.stream)
    return lambda: call(problem.params, stream, grid, problem.validation, problem.weights())


def unrolled(problem: Problem, steps: int) -> Tensor:
    """The same gradient by autograd through Adam's formulas, the graph of all steps kept.

    An entry whose squares are all zero is not moved; its square root has no derivative.
    """
    params = {name: leaf.clone().requires_grad_() for name, leaf in problem.params.items()}
    weights = problem.weights().requires_grad_()
    first = {name: torch.zeros_like(leaf) for name, leaf in params.items()}
    second = dict(first)
    for k in range(steps):
        value = problem.loss(params, problem.stream(k), weights)
        grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
        for name, g in zip(list(params), grads, strict=True):
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * g
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * g * g
            never = second[name] == 0
            root = torch.where(never, 0.0, torch.where(never, 1.0, second[name]).sqrt())
            scale = root / (1 - BETAS[1] ** (k + 1)) ** 0.5 + EPS
            params[name] = params[name] - LR * first[name] / (1 - BETAS[0] ** (k + 1)) / scale
    outer = problem.outer_loss(params, problem.validation, weights)
    return torch.autograd.grad(outer, weights)[0]


PLAIN, ACCUMULATED, META = "plain", "accumulated", "meta"
PEAKS = (PLAIN, ACCUMULATED, META)
GRADIENT, CHECK = "gradient", "check"
COMPILE = None


def measure(kind: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """What a process measures: one of `PEAKS`, `GRADIENT` or `CHECK`."""
    where = torch.device(device)
    if kind == CHECK:
        return check(sizes, where)
    problem = make(sizes, where)
    return gradient(problem, where) if kind == GRADIENT else peak(kind, problem, where)


def check(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """The error of the gradient against unrolled autograd, in float64, on a few steps."""
    few = replace(sizes, steps=sizes.check_steps, slots=2)
    problem = make(few, device, torch.float64)
    harm = meta_gradient(problem, None)().grads.hparams
    return {"outcome": "", "error": relative_error(harm, unrolled(problem, few.steps))}


def gradient(problem: Problem, device: torch.device) -> dict[str, Any]:
    """Seconds over those of plain training, and what the gradient says of shuffled windows."""
    with_pieces = plain_training(problem, problem.sizes.micro)
    differentiate = meta_gradient(problem, COMPILE)
    results: list[Any] = []
    plain = once(lambda: results.append(with_pieces()), device)
    meta = once(lambda: results.append(differentiate()), device)
    params, result = results
    shuffled = problem.train.shuffled.numpy()
    with torch.no_grad():
        losses = problem.model.losses(params, problem.train.codes)
        validation = problem.outer_loss(params, problem.validation, losses).item()
    harm = result.grads.hparams.cpu()
    return {
        "outcome": "", "ratio": meta / plain, "validation": validation,
        "value": result.value.item(),
        "gradient_auc": float(roc_auc_score(shuffled, harm.numpy())),
        "loss_auc": float(roc_auc_score(shuffled, losses.cpu().numpy())),
        "replayed": result.stats.replayed_steps, "hvps": result.stats.hvps,
        "harm": harm.tolist(), "shuffled": problem.train.shuffled.tolist(),
        "gradient_evaluations": result.stats.gradient_evaluations,
    }  # fmt: skip


def peak(kind: str, problem: Problem, device: torch.device) -> dict[str, Any]:
    """The most bytes of live tensors, after a short run of the same; for `META` also kept ones."""
    recorder = LivePeak(ticks=5)
    watched = problem._replace(stream=recorder.ticking(problem.stream))
    short = replace(problem.sizes, steps=1)
    plain_training(problem._replace(sizes=short), 1)()  # loads libraries
    pieces = {PLAIN: 1, ACCUMULATED: problem.sizes.micro}.get(kind)
    run = plain_training(watched, pieces) if pieces else meta_gradient(watched, COMPILE)
    results: list[Any] = []
    size = costs.peak_live_bytes(lambda: results.append(run()), device, recorder)
    kept = {"kept_bytes": results[0].stats.stored_bytes} if kind == META else {}
    return {"outcome": "", "bytes": size, "parameters": models.count(problem.params), **kept}


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
