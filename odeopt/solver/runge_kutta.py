"""Explicit Runge-Kutta methods with fixed steps, and their exact adjoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.registry import SOLVERS
from odeopt.solver.base import Reached, StepGradient, Stepping, StepSolver, spread
from odeopt.solver.dynamics import Cotangents, Linearization, add_thetas
from odeopt.tools.types import Velocity


@dataclass(frozen=True)
class Tableau:
    r"""$Y_i = y + dt\sum_{j<i} a_{ij} K_j,\ K_i = f(t + c_i dt, Y_i),\ y_1 = y + dt\sum_i b_i K_i$.

    Attributes:
        a: row i holds the i coefficients before the diagonal (the first row is empty).
        b: the weights.
        order: the order of convergence.
        stability_limit: the largest stable step times decay rate on the real axis.
        b_error: `b` minus the weights of the embedded method, for error estimates.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    stability_limit: float
    b_error: tuple[float, ...] | None = None

    @property
    def c(self) -> tuple[float, ...]:
        """The stage times, row sums of a."""
        return tuple(sum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """The stages that the step itself needs (not those for the error estimate alone)."""
        return max(i for i, weight in enumerate(self.b) if weight != 0) + 1


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
        pulled: dict[int, Cotangents] = {}
        total, g_t, g_dt = lam, torch.zeros_like(dt), torch.zeros_like(dt)
        for i in reversed(range(self.stages)):
            seed = self.tableau.b[i] * lam
            for j, later in pulled.items():
                if self.tableau.a[j][i] != 0:
                    seed = seed + self.tableau.a[j][i] * later.y
            pulled[i] = cotangents = points[i].pullback(seed).scale(dt)
            total = total + cotangents.y
            g_t = g_t + cotangents.t
            g_dt = g_dt + torch.dot(seed, points[i].value) + self.tableau.c[i] * cotangents.t
        theta = add_thetas([cotangents.theta for cotangents in pulled.values()])
        slopes.append(points[-1].value)  # last, where a product brings it along
        weights, some = self.tableau.b[: self.stages], [spread(slope) for slope in slopes]
        end = Reached(advance(spread(y0), dt, weights, some), len(y0))
        return StepGradient(total, g_t, g_dt, theta, end)

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
        super().__init__(Tableau(a=((),), b=(1.0,), order=1, stability_limit=2.0))


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
        super().__init__(Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2, stability_limit=2.0))


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
        super().__init__(Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2, stability_limit=2.0))


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
        super().__init__(
            Tableau(
                a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
                b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
                order=4,
                stability_limit=2.785,
            )
        )


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
        super().__init__(
            Tableau(a=((), (2 / 15,), (0.0, 0.5)), b=(0.0, 0.0, 1.0), order=2, stability_limit=5.8)
        )


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
        super().__init__(
            Tableau(
                a=((), (0.12,), (0.0, 1 / 3), (0.0, 0.0, 2 / 3)),
                b=(1 / 4, 0.0, 0.0, 3 / 4),
                order=3,
                stability_limit=5.4,
            )
        )
