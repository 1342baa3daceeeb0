"""A classifier, its data, and plain loops that autograd can follow."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
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


def sgd(g, u, slot, k, lr, o):
    g = g + o.get("weight_decay", 0) * u
    momentum = o.get("momentum", 0)
    if not isinstance(momentum, torch.Tensor) and momentum == 0:
        return u - lr * g, slot
    buffer = g if "b" not in slot else momentum * slot["b"] + (1 - o.get("dampening", 0)) * g
    return u - lr * (g + momentum * buffer if o.get("nesterov") else buffer), {"b": buffer}


def adam(g, u, slot, k, lr, o):
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    if o.get("decoupled"):
        u = u * (1 - lr * o.get("weight_decay", 0.01))
    else:
        g = g + o.get("weight_decay", 0) * u
    m = beta1 * slot.get("m", 0) + (1 - beta1) * g
    v = beta2 * slot.get("v", 0) + (1 - beta2) * g * g
    top = torch.maximum(slot.get("top", torch.zeros_like(v)), v) if o.get("amsgrad") else v
    scale = (top / (1 - beta2 ** (k + 1))).sqrt() + o.get("eps", 1e-8)
    return u - lr * m / (1 - beta1 ** (k + 1)) / scale, {"m": m, "v": v, "top": top}


def adamw(g, u, slot, k, lr, o):
    return adam(g, u, slot, k, lr, {"decoupled": True, **o})


def rmsprop(g, u, slot, k, lr, o):
    g = g + o.get("weight_decay", 0) * u
    rho = o.get("alpha", 0.99)
    v = rho * slot.get("v", 0) + (1 - rho) * g * g
    m = rho * slot.get("m", 0) + (1 - rho) * g
    spread = (v - m * m if o.get("centered") else v).sqrt() + o.get("eps", 1e-8)
    b = o.get("momentum", 0) * slot.get("b", 0) + g / spread
    return u - lr * b, {"v": v, "m": m, "b": b}


UPDATES = {"SGD": sgd, "Adam": adam, "AdamW": adamw, "RMSprop": rmsprop}


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
                g, values[own], slots.get(own, {}), k + offset, lr, options
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
