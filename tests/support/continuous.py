"""What the tests of continuous share."""

from __future__ import annotations

import torch

from odeopt import (
    RK4,
    Euler,
    GradientFlow,
    Midpoint,
    ModifiedEuler,
)

METHODS = {
    "euler": (Euler(), 1),
    "modified-euler": (ModifiedEuler(), 2),
    "midpoint": (Midpoint(), 2),
    "rk4": (RK4(), 4),
}


def close(found, expected, tolerance):
    return float(torch.linalg.vector_norm(found - expected)) <= tolerance * float(
        torch.linalg.vector_norm(expected)
    )


def network(params, batch, hparams):
    """A tanh network with two hidden units; smooth, and of both curvatures."""
    x, y = batch
    w, v = params[:4].reshape(2, 2), params[4:6]
    fit = (torch.tanh(x @ w) @ v - y).square().mean()
    return fit + hparams["decay"] * torch.log(torch.cosh(params - hparams["center"])).sum()


def moving(t, state, consts, hparams, batch):
    """Not a gradient field, and never the same twice."""
    pull = torch.func.grad(network)(state, batch, hparams)
    return -pull * (1 + 0.5 * torch.sin(2 * t)) + 0.3 * torch.cos(t) * state.roll(1)


def still(t, state, consts, hparams, batch):
    return -torch.func.grad(network)(state, batch, hparams)


FIELDS = {"flow": (GradientFlow(network), still), "moving": (moving, moving)}


def outer_network(params, batch, hparams):
    return torch.sin(params @ batch) + params.square().sum() * hparams["decay"]


SEED = 7


def network_problem(device):
    random = torch.Generator().manual_seed(SEED)
    draw = lambda *shape: torch.randn(*shape, generator=random).to(device)  # noqa: E731
    batch = (draw(10, 2), draw(10))
    hparams = {"decay": torch.tensor(0.2, device=device), "center": 0.3 * draw(6)}
    return 0.7 * draw(6), batch, 0.5 * draw(6), hparams
