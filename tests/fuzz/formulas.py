"""Update formulas in plain torch on flat vectors, written from the textbook, not from odeopt.

Autograd follows them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Slots = dict[str, Tensor]


def euler(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    return y + h * f(t, y)


def heun(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    first = f(t, y)
    return y + h / 2 * (first + f(t + h, y + h * first))


def midpoint(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    return y + h * f(t + h / 2, y + h / 2 * f(t, y))


def rk4(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    a = f(t, y)
    b = f(t + h / 2, y + h / 2 * a)
    c = f(t + h / 2, y + h / 2 * b)
    d = f(t + h, y + h * c)
    return y + h / 6 * (a + 2 * b + 2 * c + d)


def chebyshev_2(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    inner = f(t + 2 * h / 15, y + 2 * h / 15 * f(t, y))
    return y + h * f(t + h / 2, y + h / 2 * inner)


def chebyshev_3(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    first = f(t, y)
    second = f(t + 0.12 * h, y + 0.12 * h * first)
    third = f(t + h / 3, y + h / 3 * second)
    return y + h / 4 * (first + 3 * f(t + 2 * h / 3, y + 2 * h / 3 * third))


def dormand_prince(f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    rows = [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    ]
    nodes = [1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0]
    slopes = [f(t, y)]
    for row, node in zip(rows, nodes, strict=True):
        move = sum(a * k for a, k in zip(row, slopes, strict=True))
        slopes.append(f(t + node * h, y + h * move))
    weights = [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]
    return y + h * sum(w * k for w, k in zip(weights, slopes, strict=True))


@functools.cache
def _polynomials(stages: int) -> tuple[float, list[float], list[float], list[float]]:
    """The argument w0, and the Chebyshev polynomials there with two derivatives by autograd."""
    with torch.enable_grad():
        w0 = torch.tensor(1 + 2 / (13 * stages**2), dtype=torch.float64, requires_grad=True)
        values = [torch.ones_like(w0), w0]
        for _ in range(2, stages + 1):
            values.append(2 * w0 * values[-1] - values[-2])
        slopes, bends = [0.0, 1.0], [0.0, 0.0]
        for value in values[2:]:
            (slope,) = torch.autograd.grad(value, w0, create_graph=True)
            (bend,) = torch.autograd.grad(slope, w0, retain_graph=True)
            slopes.append(slope.item())
            bends.append(bend.item())
    return w0.item(), [value.item() for value in values], slopes, bends


def runge_kutta_chebyshev(stages: int, f: Velocity, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """RKC2 as in Sommeijer, Shampine and Verwer 1997, eq. (2.5), with the stages themselves."""
    w0, numbers, slopes, bends = _polynomials(stages)
    w1 = slopes[-1] / bends[-1]
    b = [0.0, 0.0, *(bends[j] / slopes[j] ** 2 for j in range(2, stages + 1))]
    b[0] = b[1] = b[2]
    start, rate = f(t, y), b[1] * w1
    before, now, times = y, y + rate * h * start, [0.0, rate]
    for j in range(2, stages + 1):
        mu, nu = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2]
        rise = 2 * w1 * b[j] / b[j - 1]
        gamma = -(1 - b[j - 1] * numbers[j - 1]) * rise
        push = rise * h * f(t + times[j - 1] * h, now) + gamma * h * start
        before, now = now, (1 - mu - nu) * y + mu * now + nu * before + push
        times.append(mu * times[j - 1] + nu * times[j - 2] + rise + gamma)
    return now


STEPS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "modified-euler": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "chebyshev-2": chebyshev_2,
    "chebyshev-3": chebyshev_3,
    "adaptive": dormand_prince,
    "torchdiffeq": midpoint,
}


def root(x: Tensor) -> Tensor:
    """The square root with derivative zero at zero."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def sgd(g: Tensor, u: Tensor, s: Slots, k: int, lr: Any, o: dict[str, Any], flag: bool) -> Any:
    g = g + o.get("weight_decay", 0.0) * u
    if "momentum" in s:
        momentum = o["momentum"]
        dampening = o.get("dampening", 0.0)
        first = k == 0 and dampening  # else the momentum of a warm start counts
        b = g if first else momentum * s["momentum"] + (1 - dampening) * g
        s, g = {"momentum": b}, g + momentum * b if flag else b
    return u - lr * o.get("lr_scale", 1.0) * g, s


def adam(g: Tensor, u: Tensor, s: Slots, k: int, lr: Any, o: dict[str, Any], flag: bool) -> Any:
    return _adam(g + o.get("weight_decay", 0.0) * u, u, s, k, lr, o, flag)


def adamw(g: Tensor, u: Tensor, s: Slots, k: int, lr: Any, o: dict[str, Any], flag: bool) -> Any:
    decay = o.get("lr_scale", 1.0) * lr * o.get("weight_decay", 0.01)
    return _adam(g, u - decay * u, s, k, lr, o, flag)


def _adam(g: Tensor, u: Tensor, s: Slots, k: int, lr: Any, o: dict[str, Any], flag: bool) -> Any:
    first, second = o.get("beta1", 0.9), o.get("beta2", 0.999)
    mean = first * s["mean"] + (1 - first) * g
    square = second * s["square"] + (1 - second) * g * g
    after = {"mean": mean, "square": square}
    if flag:
        square = after["largest"] = torch.maximum(s["largest"], square)
    length = root(square / (1 - second ** (k + 1))) + o.get("eps", 1e-8)
    return u - o.get("lr_scale", 1.0) * lr * (mean / (1 - first ** (k + 1))) / length, after


def rmsprop(g: Tensor, u: Tensor, s: Slots, k: int, lr: Any, o: dict[str, Any], flag: bool) -> Any:
    g = g + o.get("weight_decay", 0.0) * u
    rho = o.get("smoothing", 0.99)
    square = rho * s["square"] + (1 - rho) * g * g
    after = {"square": square}
    if flag:
        mean = after["mean"] = rho * s["mean"] + (1 - rho) * g
        square = square - mean * mean
    move = g / (root(square) + o.get("eps", 1e-8))
    if "momentum" in s:
        move = after["momentum"] = o["momentum"] * s["momentum"] + move
    return u - o.get("lr_scale", 1.0) * lr * move, after


RULES: dict[str, Callable[..., Any]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
}


def clipped_by_norm(g: Tensor) -> Tensor:
    length = 0.6 / (root(g.square().sum()) + 1e-6)
    return g * (length if length < 1 else 1.0)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda g: g,
    "clip-norm": clipped_by_norm,
    "clip-value": lambda g: g.clamp(-0.4, 0.4),
}


Explicit = tuple[list[list[float]], list[float], list[float]]

BACKWARD: dict[str, Explicit] = {
    "continuous-euler": ([[]], [1.0], [0.0]),
    "continuous-modified-euler": ([[], [1.0]], [0.5, 0.5], [0.0, 1.0]),
    "continuous-midpoint": ([[], [0.5]], [0.0, 1.0], [0.0, 0.5]),
    "continuous-rk4": (
        [[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
        [0.0, 0.5, 0.5, 1.0],
    ),
}
"""(a, b, c) of the methods for the adjoint equation."""
