r"""The second-order Runge-Kutta-Chebyshev method: its coefficients, a step, and its transpose.

With $D_j = Y_j - y$ the stages of a step of length h are

$D_0 = 0,\quad D_1 = \tilde\mu_1 h F_0,\quad
D_j = \mu_j D_{j-1} + \nu_j D_{j-2} + \tilde\mu_j h F_{j-1} + \tilde\gamma_j h F_0,\quad
F_j = f(t + c_j h,\, y + D_j)$

and $y_1 = y + D_s$: the usual recurrence, since the coefficients of $y, Y_{j-1}, Y_{j-2}$ sum to
one, without the cancellation of y. Sommeijer, Shampine and Verwer 1997, "RKC: An explicit solver
for parabolic PDEs", J. Comput. Appl. Math. 88.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odeopt.solver.base import StepGradient, reached
from odeopt.solver.dynamics import Cotangents, Linearization, add_thetas
from odeopt.tools.types import Velocity

DAMPING = 2 / 13

SQUARES_PER_STIFFNESS = 1.54
r"""$s^2 - 1$ per unit of $dt\,\rho$: a little more than what is stable, 1 / 0.653."""

Linearize = Callable[[Tensor, Tensor], Linearization]
"""`(t, y)`: the velocity there, with its pullback."""


class Stage(NamedTuple):
    """The coefficients with which stage j is made."""

    mu: float
    nu: float
    mu_slope: float
    """Of the velocity at stage j - 1."""
    gamma_slope: float
    """Of the velocity at the start."""
    c: float
    """The time of the stage before, as a part of the step."""


class Coefficients(NamedTuple):
    """The method with s stages."""

    first: float
    """The coefficient of stage 1."""
    stages: tuple[Stage, ...]
    """Of stages 2, ..., s."""
    beta: float
    """The largest stable step times decay rate on the real axis."""
    error: float
    r"""c in the error $c\,h^3 y^{(3)}$ of a step on a linear problem."""


@functools.cache
def coefficients(s: int) -> Coefficients:
    """The coefficients for s >= 2 stages; about 0.653 (s^2 - 1) is stable."""
    w0 = 1 + DAMPING / s**2
    value, slope, bend = _polynomials(s, w0)
    w1 = slope[s] / bend[s]
    b = [0.0, 0.0, *(bend[j] / slope[j] ** 2 for j in range(2, s + 1))]
    b[0] = b[1] = b[2]
    times, stages = [0.0, b[1] * w1], list[Stage]()
    for j in range(2, s + 1):
        mu, nu = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2]
        mu_slope = 2 * w1 * b[j] / b[j - 1]
        gamma_slope = -(1 - b[j - 1] * value[j - 1]) * mu_slope
        stages.append(Stage(mu, nu, mu_slope, gamma_slope, times[j - 1]))
        times.append(mu * times[j - 1] + nu * times[j - 2] + mu_slope + gamma_slope)
    third = (3 * w0 * bend[s] - (s * s - 1) * slope[s]) / (1 - w0 * w0)  # of T_s, by its equation
    error = (1 - third * slope[s] / bend[s] ** 2) / 6
    return Coefficients(b[1] * w1, tuple(stages), (w0 + 1) / w1, error)


def stages_for(stiffness: float, most: int) -> int:
    r"""The number of stages for a step with $dt\,\rho$ = `stiffness`, from 2 to `most`."""
    if stiffness >= coefficients(most).beta:
        return most
    return min(most, max(2, math.ceil(math.sqrt(1 + SQUARES_PER_STIFFNESS * stiffness))))


def stiffness_of(stages: int) -> float:
    r"""The $dt\,\rho$ for which `stages_for` gives so many stages."""
    return (stages * stages - 1) / SQUARES_PER_STIFFNESS


def _polynomials(s: int, x: float) -> tuple[list[float], list[float], list[float]]:
    """The Chebyshev polynomials T_0, ..., T_s at x, with their first and second derivatives."""
    value, slope, bend = [1.0, x], [0.0, 1.0], [0.0, 0.0]
    for j in range(2, s + 1):
        value.append(2 * x * value[j - 1] - value[j - 2])
        slope.append(2 * value[j - 1] + 2 * x * slope[j - 1] - slope[j - 2])
        bend.append(4 * slope[j - 1] + 2 * x * bend[j - 1] - bend[j - 2])
    return value, slope, bend


def step(s: int, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor) -> Tensor:
    """The state after a step; `slope` is the velocity at (t, y). Costs s - 1 gradients.

    Shapes: t and dt [], y [d]; or t and dt [tasks], y [tasks, d].
    """
    last = coefficients(s).stages[-1]
    before, now = _displacements(s, velocity, t, dt, y, slope)
    ahead = velocity(t + last.c * dt, y + now)
    return y + _next(last, before, now, dt[..., None] * ahead, dt[..., None] * slope)


def pull(
    s: int, linearize: Linearize, t: Tensor, dt: Tensor, y: Tensor, lam: Tensor
) -> StepGradient:
    r"""The gradient of <lam, step>, by the transposed recurrence; s Hessian-vector products.

    With $p_s = \lambda$ and, for j = s, ..., 2,
    $\ell_{j-1} = h f'(Y_{j-1})^\top \tilde\mu_j p_j$:
    $p_{j-1} \mathrel{+}= \mu_j p_j + \ell_{j-1}$, $p_{j-2} \mathrel{+}= \nu_j p_j$; at the start
    $\ell_0 = h f'(y)^\top(\sum_j \tilde\gamma_j p_j + \tilde\mu_1 p_1)$, and
    $\lambda_0 = \lambda + \sum_j \ell_j$.
    """
    method = coefficients(s)
    last = method.stages[-1]
    length, points = dt[..., None], [linearize(t, y)]

    def velocity(t: Tensor, y: Tensor) -> Tensor:
        points.append(linearize(t, y))
        return points[-1].value

    d_before, d_last = _displacements(s, velocity, t, dt, y, points[0].value)
    points.append(linearize(t + last.c * dt, y + d_last))
    now, before = lam, torch.zeros_like(lam)  # cotangents of D_j and D_{j-1}
    g_slope, total = torch.zeros_like(lam), lam
    g_t, g_dt = torch.zeros_like(t), torch.zeros_like(dt)
    pulled: list[Cotangents] = []
    for stage, point in zip(reversed(method.stages), reversed(points[1:]), strict=True):
        seed = stage.mu_slope * now
        cotangents = point.pullback(length * seed)
        pulled.append(cotangents)
        total, g_t = total + cotangents.y, g_t + cotangents.t
        g_dt = g_dt + (seed * point.value).sum(-1) + stage.c * cotangents.t
        g_slope = g_slope + stage.gamma_slope * now
        now, before = before + stage.mu * now + cotangents.y, stage.nu * now
    seed = g_slope + method.first * now
    cotangents = points[0].pullback(length * seed)
    g_dt = g_dt + (seed * points[0].value).sum(-1)
    theta = add_thetas([*(each.theta for each in pulled), cotangents.theta])
    rise, push = length * points[0].value, length * points[-1].value
    y1 = y + _next(last, d_before, d_last, push, rise)
    return StepGradient(total + cotangents.y, g_t + cotangents.t, g_dt, theta, reached(y1))


def _displacements(
    s: int, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """D of the last two stages before the end, with the velocity at each but the last of them."""
    method, length = coefficients(s), dt[..., None]
    rise = length * slope
    before, now = torch.zeros_like(y), method.first * rise
    for stage in method.stages[:-1]:
        push = length * velocity(t + stage.c * dt, y + now)
        before, now = now, _next(stage, before, now, push, rise)
    return before, now


def _next(stage: Stage, before: Tensor, now: Tensor, push: Tensor, rise: Tensor) -> Tensor:
    moved = stage.mu * now + stage.nu * before
    return moved + stage.mu_slope * push + stage.gamma_slope * rise
