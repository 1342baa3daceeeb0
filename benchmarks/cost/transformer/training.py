"""The training: plainly by torch.optim, by odeopt, and unrolled by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.cost.transformer.sizes import Sizes
from benchmarks.problems import text
from benchmarks.problems.models import Parameters
from benchmarks.problems.transformer import Transformer

LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-2
"""So large an eps, and so small a rate, make the training smooth in the weights of windows: with
0.002 and 1e-4 their gradient is as exact, and tells nothing of them."""
SHARE = 0.25
"""Of training windows whose characters are shuffled."""

Batch = tuple[Tensor, Tensor]
"""Windows and their indices."""


class Problem(NamedTuple):
    """What is trained.

    Attributes:
        model: The network.
        params: Where it begins.
        stream: Minibatches.
        train: Training windows.
        validation: Validation windows, none shuffled.
        sizes: Of the run.
    """

    model: Transformer
    params: Parameters
    stream: Callable[[int], Batch]
    train: text.Windows
    validation: Tensor
    sizes: Sizes

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
    model = Transformer(len(text.ALPHABET), sizes.length, sizes.width, heads=2, blocks=2)
    params = {name: leaf.to(device, dtype) for name, leaf in model.init(0).items()}
    drawn = text.windows("train", sizes.examples, sizes.length + 1, SHARE, seed=0)
    train = text.Windows(drawn.codes.to(device), drawn.shuffled)
    held = text.windows("test", sizes.validation, sizes.length + 1, 0.0, seed=1).codes.to(device)
    examples = (train.codes, torch.arange(sizes.examples, device=device))
    stream = odeopt.Stream.minibatches(examples, sizes.batch, seed=0)
    return Problem(model, params, stream, train, held, sizes)


def plain(problem: Problem, pieces: int) -> Callable[[], Parameters]:
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


def meta(problem: Problem, compile: str | None) -> Callable[[], odeopt.Result]:
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
