"""An independent reference: a hand-written Runge-Kutta loop that autograd goes through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

# weights written out again on purpose: (rows of a, b, c)
METHODS = {
    "euler": ([[]], [1], [0]),
    "modified-euler": ([[], [1]], [1 / 2, 1 / 2], [0, 1]),
    "midpoint": ([[], [1 / 2]], [0, 1], [0, 1 / 2]),
    "rk4": ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], [0, 0.5, 0.5, 1]),
    "chebyshev-2": ([[], [2 / 15], [0, 1 / 2]], [0, 0, 1], [0, 2 / 15, 1 / 2]),
    "chebyshev-3": (
        [[], [3 / 25], [0, 1 / 3], [0, 0, 2 / 3]],
        [1 / 4, 0, 0, 3 / 4],
        [0, 3 / 25, 1 / 3, 2 / 3],
    ),
    "dopri5": (
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        ],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1],
    ),
}


def combine(y, dt, weights, slopes):
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            y = pytree.tree_map(lambda u, k, w=weight: u + dt * w * k, y, slope)
    return y


def step(method, velocity, t, dt, y):
    """One step of a Runge-Kutta method on a pytree."""
    a, b, c = METHODS[method]
    slopes = []
    for row, position in zip(a, c, strict=True):
        slopes.append(velocity(t + position * dt, combine(y, dt, row, slopes)))
    return combine(y, dt, b, slopes)


def states(method, velocity, y, dts):
    """All states of the unrolled loop, from time 0."""
    found, t = [y], 0.0
    for dt in dts:
        y = step(method, velocity, t, dt, y)
        t = t + dt
        found.append(y)
    return found


def descent(loss, *args):
    """The velocity of gradient flow."""
    gradient = torch.func.grad(loss)
    return lambda t, y: pytree.tree_map(torch.neg, gradient(y, *args))


def relative(found, expected):
    """The largest relative difference between two trees, leaf by leaf."""
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    worst = 0.0
    for x, y in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        assert x.shape == y.shape
        if y.numel():
            worst = max(worst, float((x - y).abs().max() / y.abs().max().clamp(min=1e-3)))
    return worst


@pytest.fixture
def reference():
    return SimpleNamespace(
        step=step, states=states, descent=descent, relative=relative, methods=METHODS
    )
