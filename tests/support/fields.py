"""What the tests of fields share."""

from __future__ import annotations

import torch

from odeopt.tools import tree

pytree = tree.pytree


def loss(params, batch, hparams=None):
    x, y = batch
    scale = 1.0 if hparams is None else hparams["scale"]
    return scale * ((torch.tanh(x @ params["w"]) @ params["v"] - y) ** 2).mean()


def outer_loss(params, batch, hparams=None):
    return (params["w"] ** 2).sum() + loss(params, batch) + params["v"].sum()


def make_params(device):
    return {"v": torch.randn(2, device=device), "w": torch.randn(3, 2, device=device)}


def make_batch(device):
    return torch.randn(5, 3, device=device), torch.randn(5, device=device)


def make_hparams(device):
    return {
        "scale": torch.tensor(0.8, device=device),
        "rate": torch.tensor(0.3, device=device),
        "center": make_params(device),
    }


def combine(fn, *trees):
    return pytree.tree_map(fn, *trees)


def timed(t, state, consts, hp, batch):
    """Also a velocity for odeopt: it depends on t, on hparams and on the batch."""
    x, _ = batch
    return combine(lambda u: torch.cos(3 * t + hp["rate"]) * u * x.mean() - t * u, state)
