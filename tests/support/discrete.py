"""What the tests of discrete share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from odeopt import (
    RK4,
    Binomial,
    Chebyshev2,
    Chebyshev3,
    Density,
    Euler,
    Every,
    Graded,
    Midpoint,
    ModifiedEuler,
)

SOLVERS = {
    "euler": Euler(),
    "modified-euler": ModifiedEuler(),
    "midpoint": Midpoint(),
    "rk4": RK4(),
    "chebyshev-2": Chebyshev2(),
    "chebyshev-3": Chebyshev3(),
}

FOR_ANY_FIELD = {name: solver for name, solver in SOLVERS.items() if not solver.real_spectrum}


SCHEDULES = [
    Every(1), Every(3), Every(100), Density(1), Density(5), Graded(3),
    Binomial(1), Binomial(2), Binomial(50),
]  # fmt: skip


EXACT = 1e-12


def inner(params, batch, hparams):
    """Neither quadratic nor separable; every input matters."""
    u = torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(params)])
    features = torch.tanh(batch["x"] @ u)
    fit = (features - batch["y"]).square().mean()
    cubic = (u - hparams["shift"]).pow(3).sum() / 30
    return hparams["scale"]["a"] * fit + hparams["scale"]["b"] * torch.cosh(u).sum() / 5 + cubic


def outer(params, batch, hparams):
    u = torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(params)])
    return (torch.sin(batch @ u)).square().mean() * (1 + hparams["scale"]["b"]) + u.sum() / 7


def problem(shapes, device, seed=0, container="dict"):
    """(params, batch, outer_batch, hparams)."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (0.5 * torch.randn(shape, generator=random)).to(device)

    parts = [draw(*shape) for shape in shapes]
    params = {
        "dict": {f"w{i}": leaf for i, leaf in enumerate(parts)},
        "nested": {"first": (parts[0],), "rest": parts[1:]},
        "tuple": tuple(parts),
    }[container]
    d = sum(leaf.numel() for leaf in parts)
    batch = {"x": draw(4, d), "y": draw(4)}
    hparams = {"scale": {"a": draw().abs() + 0.5, "b": draw().abs()}, "shift": draw(d)}
    return params, batch, draw(3, d), hparams


def requiring_grad(tree):
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def autograd(objective, *inputs):
    """The value and the gradients w.r.t. all inputs, by torch.autograd."""
    inputs = requiring_grad(inputs)
    value = objective(*inputs)
    flat, spec = pytree.tree_flatten(inputs)
    grads = torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True)
    return value.detach(), pytree.tree_unflatten(list(grads), spec)


def leaves(res):
    """The value and all gradients of a result, flat."""
    grads = res.grads
    found = pytree.tree_leaves((res.value, grads.params, grads.hparams, grads.dt, grads.batch))
    return [leaf for leaf in found if leaf is not None]


def assert_same_as_autograd(reference, res, expected):
    value, (g_params, g_batch, g_hparams, g_dt) = expected
    assert reference.relative(res.value, value) <= EXACT
    assert reference.relative(res.grads.params, g_params) <= EXACT
    assert reference.relative(res.grads.hparams, g_hparams) <= EXACT
    assert reference.relative(res.grads.dt, g_dt) <= EXACT
    if res.grads.batch is not None:
        assert reference.relative(res.grads.batch, g_batch) <= EXACT


shapes = st.lists(
    st.lists(st.integers(1, 3), max_size=3).map(tuple), min_size=1, max_size=3
)  # fmt: skip


def end(params, batch, hparams):
    return (params["u"].square().sum() * hparams["b"] + (batch * params["v"]).sin().sum()) / 2


def cubic(params, batch):
    return (batch * params.pow(3)).sum() / 6
