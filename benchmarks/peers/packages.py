"""The gradient by other packages, as their users write it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from benchmarks.cost.updates import peers
from benchmarks.peers.problems import Network, Problem
from benchmarks.peers.runner import Outcome, Runner, Setup
from benchmarks.problems.tasks import Batch


def higher(setup: Setup, setting: float | None) -> Runner:
    """`higher.innerloop_ctx`, task by task; the setting is the number of steps."""
    return _unrolled(peers.unrolled_by_higher, setup, setting)


def torchopt(setup: Setup, setting: float | None) -> Runner:
    """`torchopt.MetaSGD`, likewise."""
    return _unrolled(peers.unrolled_by_torchopt, setup, setting)


def _unrolled(unroll: Callable[..., Any], setup: Setup, setting: float | None) -> Runner:
    problem, steps = setup.problem, setup.steps if setting is None else round(setting)
    network: nn.Module = _perceptron(problem) or Network(problem)
    lr = setup.t1 / steps

    def run(count: int) -> Outcome:
        return Outcome(unroll(network, _loss(problem, network), problem.tasks, lr, count)())

    return Runner(steps, run)


def _perceptron(problem: Problem) -> nn.Module | None:
    """The perceptron as everybody builds it."""
    return peers.module(problem.params) if problem.name == "mlp" else None


def _loss(problem: Problem, network: nn.Module) -> peers.NetworkLoss:
    if isinstance(network, Network):
        return lambda network, batch: network(batch)
    return peers.half_mean_square_of


MOST_STEPS = 1000
"""Of torchdiffeq, besides twice as many as those of gradient descent."""


class _Flow(nn.Module):
    """The velocity of all tasks, [tasks, d], through which autograd can differentiate."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        layout = problem.raveled()[1]
        x, targets = problem.tasks.train

        def slope(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
            return grad(lambda u: problem.loss(layout.unflatten(u), Batch(x, targets)))(y)

        self._velocity = lambda y: -vmap(slope)(y, x, targets)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The velocity, which does not depend on time."""
        del t
        return self._velocity(y)


def torchdiffeq(setup: Setup, setting: float | None) -> Runner:
    """`odeint_adjoint` of Dormand-Prince, tasks stacked; the setting is rtol."""
    package: Any = import_module("torchdiffeq")
    problem, rtol = setup.problem, setting or 1e-3
    flow, part = _Flow(problem), setup.t1 / setup.steps
    flat, layout = problem.raveled()

    def outer(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return problem.loss(layout.unflatten(y), Batch(x, targets))

    def run(count: int) -> Outcome:
        start = flat.detach().requires_grad_()
        times = torch.tensor([0.0, count * part], dtype=start.dtype, device=start.device)
        limit = {"max_num_steps": MOST_STEPS + 2 * setup.steps}
        end = package.odeint_adjoint(
            flow, start.expand(problem.count, -1), times, rtol=rtol, atol=rtol * 1e-2,
            method="dopri5", options=dict(limit), adjoint_params=(),
            adjoint_options={"norm": "seminorm", **limit},
        )[-1]  # fmt: skip
        value = vmap(outer)(end, *problem.tasks.validation).mean()
        return Outcome(torch.autograd.grad(value, start)[0])

    return Runner(setup.steps, run)
