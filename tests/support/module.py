"""What the tests of module share."""

from __future__ import annotations

import torch
from torch import nn


def mse(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def outer(params, batch, hparams=None):
    return sum((p**2).sum() for p in params.values())


def make_net(device):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(device)


def make_batch(device):
    return torch.randn(6, 3, device=device), torch.randn(6, 2, device=device)


def is_head(name):
    return name.startswith("2.")


def unrolled(loss, params, batch, hparams, lr, steps):
    """Gradient descent as a plain loop with autograd."""
    for _ in range(steps):
        value = loss(params, batch) if hparams is None else loss(params, batch, hparams)
        gradients = torch.autograd.grad(value, list(params.values()), create_graph=True)
        params = {n: p - lr * g for (n, p), g in zip(params.items(), gradients, strict=True)}
    return params


def with_grad(tensors):
    return {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
