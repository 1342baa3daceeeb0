"""What the tests of tasks share."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from odeopt import (
    RK4,
    Adaptive,
    BacksolveAdjoint,
    Binomial,
    ContinuousAdjoint,
    Density,
    DiscreteAdjoint,
    Euler,
    Every,
    FirstOrderAdjoint,
    GradientFlow,
    Midpoint,
    ModifiedEuler,
    ODEOptimizer,
    TimeGrid,
    TruncatedAdjoint,
)

TASKS, STEPS, EXACT = 4, 6, 1e-12


CHOICES = {
    "euler": (Euler(), DiscreteAdjoint(), Every(1)),
    "euler-every": (Euler(), DiscreteAdjoint(), Every(4)),
    "midpoint-binomial": (Midpoint(), DiscreteAdjoint(), Binomial(2)),
    "rk4-density": (RK4(), DiscreteAdjoint(), Density(3)),
    "truncated": (Euler(), TruncatedAdjoint(3), Every(2)),
    "first-order": (RK4(), FirstOrderAdjoint(), Every(1)),
    "continuous": (RK4(), ContinuousAdjoint(ModifiedEuler()), Every(2)),
    "continuous-hermite": (RK4(), ContinuousAdjoint(RK4()), Binomial(2)),
    "backsolve": (RK4(), BacksolveAdjoint(), Every(1)),
}


ADAPTIVE = {
    "adaptive": (Adaptive(1e-5, 1e-7), DiscreteAdjoint(), Every(1)),
    "adaptive-binomial": (Adaptive(1e-5, 1e-7), DiscreteAdjoint(), Binomial(2)),
}


ALL = CHOICES | ADAPTIVE


def inner(params, batch, hparams):
    x, y = batch
    prediction = torch.tanh(x @ params["w"]) @ params["v"]
    penalty = (hparams["h"]["decay"] * params["w"].cosh()).sum() + params["v"].pow(4).sum() / 9
    return (prediction - y).square().mean() + penalty


def outer(params, batch, hparams):
    value = (batch @ params["w"]).sin().mean() + params["v"].square().sum()
    return value * hparams["h"]["scale"]


def problem(device):
    """(params, batch, outer_batch, hparams); batches have a leading task dimension."""
    draw = lambda *shape: 0.6 * torch.randn(shape, device=device)  # noqa: E731
    params = {"w": draw(2, 2), "v": draw(2)}
    batch = (draw(TASKS, 5, 2), draw(TASKS, 5))
    hparams = {"h": {"decay": draw(2, 2).abs() / 5, "scale": draw().abs() + 1}}
    return params, batch, draw(TASKS, 3, 2), hparams


def at(tree, task):
    return pytree.tree_map(lambda leaf: leaf[task], tree)


def requiring_grad(tree):
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def assert_close(found, expected, tolerance=EXACT):
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    trees = pytree.tree_map(torch.detach, (found, expected))
    for x, y in zip(*map(pytree.tree_leaves, trees), strict=True):
        assert x.shape == y.shape
        if not y.numel():
            continue
        assert float((x - y).abs().max()) <= tolerance * max(float(y.abs().max()), 1e-2)


def mean(trees):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves).mean(0), *trees)


def stack(trees):
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def optimizer(name, field=None):
    solver, adjoint, checkpoints = ALL[name]
    return ODEOptimizer(field or GradientFlow(inner), solver, adjoint, checkpoints)


GRIDS = {
    "common": lambda device: TimeGrid.uniform(0.6, STEPS),
    "horizons": lambda device: TimeGrid.uniform(
        torch.tensor([0.6, 0.1, 0.0, 0.9], device=device), STEPS
    ),
    "learning rates": lambda device: TimeGrid.from_lr(
        torch.rand(TASKS, STEPS, device=device).where(
            torch.arange(STEPS, device=device) < torch.tensor([[6], [3], [0], [5]], device=device),
            0.0,
        )
        / 5
    ),
}
