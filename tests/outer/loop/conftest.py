"""A classifier, its data, and plain loops that autograd can follow."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from support.updates import UPDATES
from torch import nn
from torch.func import functional_call

from odeopt.tools.seeds import mix, seeded


def mse(model, batch):
    return (model(batch[0])[..., 0] - batch[1]).square().mean()


def weighted(model, batch, hparams):
    x, y, index = batch
    error = (model(x)[..., 0] - y).square()
    return (hparams["weights"][index].exp() * error).mean() + hparams["decay"] * sum(
        p.square().sum() for p in model.parameters()
    )


class Problem(NamedTuple):
    model: nn.Module
    batches: list
    outer: tuple
    mse: Callable
    weighted: Callable
    unroll: Callable


def lend(model, values, loss, *args):
    """The loss with other values in the module, whose buffers are updated in `values`."""
    host = nn.Module()
    host.inner = model
    host.forward = lambda: loss(model, *args)
    return functional_call(host, {f"inner.{name}": leaf for name, leaf in values.items()})


def unroll(model, name, steps, seed=0, offset=0, slots=None):
    """Differentiable (parameters, buffers, slots) after steps from the module's own parameters.

    Each step is (loss, args, {parameter: (lr, options)}).
    """
    values = dict(model.named_parameters())
    buffers = {own: leaf.detach().clone() for own, leaf in model.named_buffers()}
    slots = {} if slots is None else slots
    device = next(iter(values.values())).device
    for k, (loss, args, chosen) in enumerate(steps):
        buffers = {own: leaf.clone() for own, leaf in buffers.items()}
        moved = [own for own in values if own in chosen]
        with seeded(mix(seed, k), device):
            value = lend(model, {**values, **buffers}, loss, *args)
        found = torch.autograd.grad(
            value, [values[own] for own in moved], create_graph=True, allow_unused=True
        )
        after = {}
        for own, g in zip(moved, found, strict=True):
            if g is None:  # torch leaves it alone
                continue
            lr, options = chosen[own]
            after[own], slots[own] = UPDATES[name](
                -g if options.get("maximize") else g,
                values[own],
                slots.get(own, {}),
                k + offset,
                lr,
                options,
            )
        values = {**values, **after}
    return values, buffers, slots


@pytest.fixture
def problem(device):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(device)
    batches = [
        tuple(
            leaf.to(device) for leaf in (torch.randn(5, 3), torch.randn(5), torch.randint(8, (5,)))
        )
        for _ in range(6)
    ]
    outer = tuple(leaf.to(device) for leaf in (torch.randn(7, 3), torch.randn(7)))
    return Problem(model, batches, outer, mse, weighted, unroll)
