"""One training, run plainly by torch.optim and differentiated by odeopt and by other packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.cost.long_loops.sizes import Point
from benchmarks.cost.updates import peers
from benchmarks.problems import classification, losses, models
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch

LR, MOMENTUM, BATCH = 0.05, 0.9, 32
OURS = "odeopt"
LABELS = {OURS: "odeopt", "higher": "higher", "torchopt": "TorchOpt"}

Meta = tuple[Tensor, odeopt.Stats | None]


class Loop(NamedTuple):
    """A training: where it begins, its minibatches, and the validation examples.

    Attributes:
        point: Its size.
        params: In float32.
        stream: Minibatches of digits.
        validation: For the outer loss.
    """

    point: Point
    params: Parameters
    stream: Callable[[int], Batch]
    validation: Batch


def installed(line: str) -> bool:
    """Whether a line's package is there."""
    return find_spec(line) is not None


def make(point: Point, device: torch.device) -> Loop:
    """The training of a perceptron of about so many parameters on digits."""
    split = classification.split_digits(1000, 200, 0).to(device, torch.float32)
    params = model(point.parameters).init(0)
    params = {name: leaf.to(device, torch.float32) for name, leaf in params.items()}
    return Loop(point, params, odeopt.Stream.minibatches(split.train, BATCH, 0), split.validation)


def model(parameters: int) -> models.Model:
    """64 inputs, ten outputs, and a hidden layer as wide as it takes: 75 parameters a unit."""
    return models.mlp([64, max(1, round((parameters - 10) / 75)), 10])


def plain(loop: Loop) -> Callable[[], None]:
    """The training by `torch.optim.SGD`, as everybody writes it."""

    def run() -> None:
        network = peers.module(loop.params)
        sgd = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)
        for k in range(loop.point.steps):
            batch = loop.stream(k)
            sgd.zero_grad()
            losses.cross_entropy(network(batch.x), batch.y).backward()
            sgd.step()

    return run


def forward(loop: Loop, opt: odeopt.ODEOptimizer) -> Callable[[], None]:
    """The training by odeopt, without a gradient."""

    @torch.no_grad()
    def run() -> None:
        opt.solve(loop.params, odeopt.Stream(loop.stream), _grid(loop))

    return run


def optimizer(loop: Loop, compile: str) -> odeopt.ODEOptimizer:
    """The choices: SGD with momentum, Binomial, and how kernels are run."""
    mean = classification.mean_loss(model(loop.point.parameters))
    return odeopt.ODEOptimizer(
        odeopt.SGD(mean, momentum=MOMENTUM),
        checkpoints=odeopt.Binomial(loop.point.slots), compile=compile,
    )  # fmt: skip


def ours(loop: Loop, opt: odeopt.ODEOptimizer) -> Callable[[], Meta]:
    """The gradient of the validation loss w.r.t. the initialisation (and all learning rates)."""
    call = opt.value_and_grad(classification.mean_loss(model(loop.point.parameters)))

    def run() -> Meta:
        result = call(loop.params, odeopt.Stream(loop.stream), _grid(loop), loop.validation)
        return flat(result.grads.params), result.stats

    return run


def with_higher(loop: Loop) -> Callable[[], Meta]:
    """The same gradient by the package higher, which unrolls."""
    higher: Any = import_module("higher")
    network = peers.module(loop.params)
    sgd = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM)

    def run() -> Meta:
        network.zero_grad()
        with higher.innerloop_ctx(network, sgd, copy_initial_weights=False) as (copy, inner):
            for k in range(loop.point.steps):
                batch = loop.stream(k)
                inner.step(losses.cross_entropy(copy(batch.x), batch.y))
            losses.cross_entropy(copy(loop.validation.x), loop.validation.y).backward()
        return peers.gradient(network), None

    return run


def with_torchopt(loop: Loop) -> Callable[[], Meta]:
    """The same by the package torchopt, likewise."""
    torchopt: Any = import_module("torchopt")
    network = peers.module(loop.params)
    leaves = list(network.parameters())
    sgd = torchopt.MetaSGD(network, lr=LR, momentum=MOMENTUM)
    start = torchopt.extract_state_dict(network, by="reference")
    fresh = torchopt.extract_state_dict(sgd, by="reference")

    def run() -> Meta:
        for leaf in leaves:
            leaf.grad = None
        try:
            for k in range(loop.point.steps):
                batch = loop.stream(k)
                sgd.step(losses.cross_entropy(network(batch.x), batch.y))
            losses.cross_entropy(network(loop.validation.x), loop.validation.y).backward()
        finally:
            torchopt.recover_state_dict(network, start)
            torchopt.recover_state_dict(sgd, fresh)
        return peers.gradient(network), None

    return run


PEERS = {"higher": with_higher, "torchopt": with_torchopt}


def flat(params: Parameters) -> Tensor:
    """All parameters in one vector, in their order."""
    return torch.cat([leaf.flatten() for leaf in params.values()])


def _grid(loop: Loop) -> odeopt.TimeGrid:
    return odeopt.TimeGrid.from_lr(LR, loop.point.steps)
