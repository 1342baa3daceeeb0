"""MAML by unrolling, as users of other packages write it: a loop over tasks on an nn.Module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems.losses import half_mean_square
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch, Task

NetworkLoss = Callable[[nn.Module, Batch], Tensor]
"""Of a network on a batch."""


def module(params: Parameters) -> nn.Sequential:
    """The perceptron of `benchmarks.problems.models.mlp` with these parameters."""
    weights = [leaf for name, leaf in params.items() if name.endswith("weight")]
    layers: list[nn.Module] = []
    for weight in weights:
        outputs, inputs = weight.shape
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    network = nn.Sequential(*layers[:-1]).to(weights[0])
    with torch.no_grad():
        for own, given in zip(network.parameters(), params.values(), strict=True):
            own.copy_(given)
    return network


def with_higher(params: Parameters, tasks: Task, lr: float, steps: int) -> Callable[[], Tensor]:
    """Exact MAML of the package higher, on the perceptron with these parameters."""
    return unrolled_by_higher(module(params), half_mean_square_of, tasks, lr, steps)


def with_torchopt(params: Parameters, tasks: Task, lr: float, steps: int) -> Callable[[], Tensor]:
    """Exact MAML of the package torchopt, likewise."""
    return unrolled_by_torchopt(module(params), half_mean_square_of, tasks, lr, steps)


def unrolled_by_higher(
    network: nn.Module, loss: NetworkLoss, tasks: Task, lr: float, steps: int
) -> Callable[[], Tensor]:
    """Exact MAML of the package higher; each task's graph is freed before the next is made."""
    higher: Any = import_module("higher")
    sgd = torch.optim.SGD(network.parameters(), lr=lr)

    def run() -> Tensor:
        network.zero_grad()
        for train, validation in _each(tasks):
            with higher.innerloop_ctx(network, sgd, copy_initial_weights=False) as (copy, inner):
                for _ in range(steps):
                    inner.step(loss(copy, train))
                (loss(copy, validation) / _count(tasks)).backward()
        return gradient(network)

    return run


def unrolled_by_torchopt(
    network: nn.Module, loss: NetworkLoss, tasks: Task, lr: float, steps: int
) -> Callable[[], Tensor]:
    """Exact MAML of the package torchopt, likewise."""
    torchopt: Any = import_module("torchopt")
    leaves = list(network.parameters())
    sgd = torchopt.MetaSGD(network, lr=lr)
    start = torchopt.extract_state_dict(network, by="reference")
    fresh = torchopt.extract_state_dict(sgd, by="reference")

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        for train, validation in _each(tasks):
            for _ in range(steps):
                sgd.step(loss(network, train))
            (loss(network, validation) / _count(tasks)).backward()
            torchopt.recover_state_dict(network, start)
            torchopt.recover_state_dict(sgd, fresh)
        return gradient(network)

    return run


def _each(tasks: Task) -> Iterator[Task]:
    train, validation = tasks
    for index in range(_count(tasks)):
        yield Task(
            Batch(train.x[index], train.y[index]), Batch(validation.x[index], validation.y[index])
        )


def _count(tasks: Task) -> int:
    return tasks.train.x.shape[0]


def half_mean_square_of(network: nn.Module, batch: Batch) -> Tensor:
    """The loss of the regression tasks."""
    return half_mean_square(network(batch.x), batch.y)


def gradient(network: nn.Module) -> Tensor:
    """The gradients of its parameters in one vector."""
    found = [parameter.grad for parameter in network.parameters()]
    return torch.cat([leaf.flatten() for leaf in found if leaf is not None])
