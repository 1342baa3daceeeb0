"""Gradients by unrolling, as users of other packages write it: a loop over tasks on a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems.models import Parameters, half_mean_square
from benchmarks.problems.tasks import Batch, Task, each

NetworkLoss = Callable[[nn.Module, Batch], Tensor]
"""Of a network on a batch."""

Training = tuple[Callable[[int], Batch], Batch]
"""The batch of each step, and that of the outer loss."""


def module(params: Parameters) -> nn.Sequential:
    """The perceptron of `benchmarks.problems.models.mlp` with these parameters."""
    weights = [leaf for name, leaf in params.items() if name.endswith("weight")]
    layers: list[nn.Module] = []
    for weight in weights:
        outputs, inputs = weight.shape
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    network = nn.Sequential(*layers[:-1]).to(weights[0])
    with torch.no_grad():
        for own, leaf in zip(network.parameters(), params.values(), strict=True):
            own.copy_(leaf)
    return network


def trainings(tasks: Task) -> list[Training]:
    """Those of MAML, whose steps are all on the same batch."""
    return [((lambda _, own=train: own), validation) for train, validation in each(tasks)]


def by_higher(
    network: nn.Module, loss: NetworkLoss, trainings: Sequence[Training], steps: int,
    rule: str = "SGD", **settings: float,
) -> Callable[[], Tensor]:  # fmt: skip
    """The exact gradient by the package higher; a task's graph is freed before the next is made.

    Args:
        network: Where every training begins.
        loss: The inner one, and in evaluation mode the outer one.
        trainings: Of each task.
        steps: Of each training.
        rule: "SGD" or "Adam".
        settings: Of it.
    """
    higher: Any = import_module("higher")
    optimizer = getattr(torch.optim, rule)(network.parameters(), **settings)

    def run() -> Tensor:
        network.zero_grad()
        for batch_of, validation in trainings:
            with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (
                copy,
                inner,
            ):
                for k in range(steps):
                    inner.step(loss(copy, batch_of(k)))
                copy.eval()
                (loss(copy, validation) / len(trainings)).backward()
        return gradient(network)

    return run


def by_torchopt(
    network: nn.Module, loss: NetworkLoss, trainings: Sequence[Training], steps: int,
    rule: str = "SGD", **settings: float,
) -> Callable[[], Tensor]:  # fmt: skip
    """The same by the package torchopt; statistics, which change in place, are put back."""
    torchopt: Any = import_module("torchopt")
    leaves, mode = list(network.parameters()), network.training
    optimizer = getattr(torchopt, f"Meta{rule}")(network, **settings)
    start = torchopt.extract_state_dict(network, by="reference")
    fresh = torchopt.extract_state_dict(optimizer, by="reference")
    statistics = [(own, own.clone()) for own in network.buffers()]

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        for batch_of, validation in trainings:
            try:
                for k in range(steps):
                    optimizer.step(loss(network, batch_of(k)))
                network.eval()
                (loss(network, validation) / len(trainings)).backward()
            finally:
                network.train(mode)
                torchopt.recover_state_dict(network, start)
                torchopt.recover_state_dict(optimizer, fresh)
                for own, before in statistics:
                    own.copy_(before)
        return gradient(network)

    return run


PEERS = {"higher": by_higher, "torchopt": by_torchopt}
"""By the names of the packages."""


def half_mean_square_of(network: nn.Module, batch: Batch) -> Tensor:
    """The loss of the regression tasks."""
    return half_mean_square(network(batch.x), batch.y)


def gradient(network: nn.Module) -> Tensor:
    """The gradients of its parameters in one vector."""
    grads = [parameter.grad for parameter in network.parameters()]
    return torch.cat([leaf.flatten() for leaf in grads if leaf is not None])
