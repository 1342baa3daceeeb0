"""Weights of examples through the training of a small transformer, and its need of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

import odeopt
from benchmarks.harness import costs
from benchmarks.harness.costs import LivePeak, once
from benchmarks.harness.registry import Preset
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
    recorder, stream = LivePeak(ticks=5), problem.stream
    ticking = False

    def batch(k: int) -> Batch:
        if ticking:
            recorder.tick()
        return stream(k)

    watched = problem._replace(stream=batch)
    runs = {
        PLAIN: lambda: plain_training(watched, 1),
        ACCUMULATED: lambda: plain_training(watched, problem.sizes.micro),
        META: lambda: meta_gradient(watched, COMPILE),
    }
    short = replace(problem.sizes, steps=1)
    plain_training(problem._replace(sizes=short), 1)()  # loads libraries
    results: list[Any] = []
    run = runs[kind]()
    if device.type == "cuda":
        size = costs.peak_live_bytes(lambda: results.append(run()), device)
    else:
        ticking = True
        with recorder:
            results.append(run())
        size = recorder.bytes
    kept = {"kept_bytes": results[0].stats.stored_bytes} if kind == META else {}
    return {"outcome": "", "bytes": size, "parameters": models.count(problem.params), **kept}
