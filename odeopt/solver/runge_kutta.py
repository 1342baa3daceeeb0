"""Explicit Runge-Kutta methods with fixed steps, and their exact adjoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.registry import SOLVERS
from odeopt.solver.base import StepGradient, Stepping, StepSolver
from odeopt.solver.dynamics import Cotangents, Linearization, add_thetas
from odeopt.solver.reached import Reached, spread
from odeopt.solver.tableau import (
    CHEBYSHEV_2,
    CHEBYSHEV_3,
    EULER,
    HEUN,
    MIDPOINT,
    RUNGE_KUTTA_4,
    Tableau,
)
from odeopt.tools.types import Velocity


class ExplicitRungeKutta(StepSolver):
    """An explicit Runge-Kutta method; a subclass supplies its tableau."""

    tableau: Tableau

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.order = tableau.order
        self.stages = tableau.stages
        self.stability_limit = tableau.stability_limit

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        slopes: list[Tensor] = []
        for row, c in self._rows():
            slopes.append(velocity(shift(t, c, dt), advance(y, dt, row, slopes)))
        return advance(y, dt, self.tableau.b[: self.stages], slopes)

    @override
    def pull(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor, lam: Tensor
    ) -> StepGradient:
        r"""The transposed method: one Hessian-vector product per stage.

        $G_i = b_i\lambda_1 + \sum_{j>i} a_{ji}\ell_j,\; \ell_i = dt\, f'(Y_i)^\top G_i,\;
        \lambda_0 = \lambda_1 + \sum_i \ell_i$ (Hager 2000; Sanz-Serna 2016, arXiv 1503.04021).
        """
        points: list[Linearization] = []
        slopes: list[Tensor] = []
        for row, c in self._rows():
            points.append(stepping.linearize(shift(t, c, dt), advance(y0, dt, row, slopes)))
            if len(points) < self.stages:
                slopes.append(points[-1].value)
        found = self._transpose(points, dt, lam)
        slopes.append(points[-1].value)  # last, where a product brings it along
        weights, some = self.tableau.b[: self.stages], [spread(slope) for slope in slopes]
        return found._replace(end=Reached(advance(spread(y0), dt, weights, some), len(y0)))

    def _transpose(self, points: Sequence[Linearization], dt: Tensor, lam: Tensor) -> StepGradient:
        pulled: dict[int, Cotangents] = {}
        total, g_t, g_dt = lam, torch.zeros_like(dt), torch.zeros_like(dt)
        for i in reversed(range(self.stages)):
            seed = self._seed(i, lam, pulled)
            cotangents = points[i].pullback(seed).scale(dt)
            pulled[i] = cotangents
            total = total + cotangents.y
            g_t = g_t + cotangents.t
            g_dt = g_dt + torch.dot(seed, points[i].value) + self.tableau.c[i] * cotangents.t
        thetas = [cotangents.theta for cotangents in pulled.values()]
        return StepGradient(total, g_t, g_dt, add_thetas(thetas))

    def _seed(self, i: int, lam: Tensor, pulled: dict[int, Cotangents]) -> Tensor:
        seed = self.tableau.b[i] * lam
        for j, cotangents in pulled.items():
            coefficient = self.tableau.a[j][i]
            if coefficient != 0:
                seed = seed + coefficient * cotangents.y
        return seed

    def _rows(self) -> list[tuple[tuple[float, ...], float]]:
        return list(zip(self.tableau.a, self.tableau.c, strict=True))[: self.stages]


@final
@SOLVERS.register("euler")
class Euler(ExplicitRungeKutta):
    r"""Explicit Euler, order 1: $y_1 = y_0 + dt\,f(t, y_0)$; on gradient flow, gradient descent.

    One step is `torch.addcmul(y, f, dt)`, bit-equal to `torch.optim.SGD`. Stable for
    $dt\,\rho < 2$, where $\rho$ is the largest eigenvalue of the Hessian.

    Cost: one gradient per step; its exact adjoint one Hessian-vector product.

    References:
        Euler 1768; Li et al. 2023, section 3.1, for gradient descent as its use on a flow.
    """

    is_descent = True

    def __init__(self) -> None:
        super().__init__(EULER)


@final
@SOLVERS.register("modified-euler")
class ModifiedEuler(ExplicitRungeKutta):
    r"""Modified Euler (Heun's method), order 2: $y_1 = y_0 + \tfrac{dt}{2}(K_1 + K_2)$.

    Here $K_1 = f(t, y_0)$ and $K_2 = f(t + dt, y_0 + dt\,K_1)$. Stable for $dt\,\rho < 2$.

    Cost: two gradients per step; its exact adjoint two Hessian-vector products.

    References:
        Ascher and Petzold 1998; used by the paper for the backward sweep (Algorithm 2).
    """

    def __init__(self) -> None:
        super().__init__(HEUN)


@final
@SOLVERS.register("midpoint")
class Midpoint(ExplicitRungeKutta):
    r"""The explicit midpoint rule, order 2.

    $y_1 = y_0 + dt\,f(t + \tfrac{dt}{2}, y_0 + \tfrac{dt}{2} f(t, y_0))$, stable for
    $dt\,\rho < 2$.

    Cost: two gradients per step; its exact adjoint two Hessian-vector products.

    References:
        Runge 1895.
    """

    def __init__(self) -> None:
        super().__init__(MIDPOINT)


@final
@SOLVERS.register("rk4")
class RK4(ExplicitRungeKutta):
    r"""The classical Runge-Kutta method, order 4, stable for $dt\,\rho < 2.785$.

    $y_1 = y_0 + \tfrac{dt}{6}(K_1 + 2 K_2 + 2 K_3 + K_4)$ with slopes at the start, twice in the
    middle and at the end.

    Cost: four gradients per step; its exact adjoint four Hessian-vector products.

    References:
        Kutta 1901.
    """

    def __init__(self) -> None:
        super().__init__(RUNGE_KUTTA_4)


def shift(t: Tensor, c: float, dt: Tensor) -> Tensor:
    """T + c dt."""
    return t if c == 0 else t + c * dt


def combine(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor | None:
    """The weighted sum of slopes; None when all weights are zero."""
    used = [(w, slope) for w, slope in zip(weights, slopes, strict=True) if w != 0]
    if not used:
        return None
    return weighted_sum([w for w, _ in used], [slope for _, slope in used])


def weighted_sum(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """The weighted sum of at least one tensor."""
    scaled = [x if w == 1 else w * x for w, x in zip(weights, terms, strict=True)]
    return functools.reduce(torch.add, scaled)


def advance(y: Tensor, dt: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Y + dt * sum(weights * slopes); `addcmul` rounds as `torch.optim.SGD` does."""
    slope = combine(weights, slopes)
    return y if slope is None else torch.addcmul(y, slope, dt)


@final
@SOLVERS.register("chebyshev-2")
class Chebyshev2(ExplicitRungeKutta):
    r"""A method of order 2 with three stages, stable for $dt\,\rho < 5.8$ on gradient flows.

    $y_1 = y_0 + dt\,f(y_0 + \tfrac{dt}{2} f(y_0 + \tfrac{2 dt}{15} f(y_0)))$, whose stability
    polynomial is $1 + z + z^2/2 + z^3/15$: a Chebyshev-like one, damped so that its size stays
    below 0.77 inside. For the same way `ModifiedEuler` needs 1.9 times as many gradients, and
    `Euler` slightly fewer, but at order 1. Errors fall regularly up to the limit of stability, so
    that they can be told from two solves.

    It needs a field with a symmetric Jacobian: a `GradientField` such as `GradientFlow`. Elsewhere
    eigenvalues leave the real axis, beside which the method is unstable. For long horizons use
    `StabilizedRK`, which chooses its stages.

    Cost: three gradients per step; its exact adjoint three Hessian-vector products.

    References:
        van der Houwen 1977, "Construction of integration formulas for initial value problems".
    """

    real_spectrum = True

    def __init__(self) -> None:
        super().__init__(CHEBYSHEV_2)


@final
@SOLVERS.register("chebyshev-3")
class Chebyshev3(ExplicitRungeKutta):
    r"""A method of order 3 with four stages, stable for $dt\,\rho < 5.4$ on gradient flows.

    Heun's method of order 3, $y_1 = y_0 + \tfrac{dt}{4}(K_1 + 3 K_4)$ with slopes at the start and
    at two thirds of the step, and a fourth stage that makes the stability polynomial
    $1 + z + z^2/2 + z^3/6 + z^4/50$, of size below 0.56 inside. Steps are stable for twice as long
    as those of `RK4`, which has as many stages.

    It needs a field with a symmetric Jacobian, see `Chebyshev2`.

    Cost: four gradients per step; its exact adjoint four Hessian-vector products.

    References:
        van der Houwen 1977, "Construction of integration formulas for initial value problems".
    """

    real_spectrum = True

    def __init__(self) -> None:
        super().__init__(CHEBYSHEV_3)
