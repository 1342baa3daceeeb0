"""Explicit Runge-Kutta methods, and their exact adjoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError
from odeopt.registry import SOLVERS
from odeopt.solver.base import Reached, RecordedStep, StepGradient, Stepping, StepSolver, spread
from odeopt.solver.dynamics import Cotangents, Linearization, add_thetas
from odeopt.solver.error_control import Attempt, ErrorControlled, PIController, Tolerances
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
        self._times = tableau.c

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        slopes: list[Tensor] = []
        for i in range(self.stages):
            slopes.append(velocity(*self._stage(i, t, dt, y, slopes)))
        return add_slopes(y, dt, self.tableau.b[: self.stages], slopes)

    @override
    def pull(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor, lam: Tensor
    ) -> StepGradient:
        r"""The transposed method: one Hessian-vector product per stage.

        $G_i = b_i\lambda_1 + \sum_{j>i} a_{ji}\ell_j,\; \ell_i = dt\, f'(Y_i)^\top G_i,\;
        \lambda_0 = \lambda_1 + \sum_i \ell_i$ (Hager 2000; Sanz-Serna 2016, arXiv 1503.04021).
        """
        points, slopes = self._linearize(stepping, t, dt, y0)
        step = self._transpose(points, dt, lam)
        slopes.append(points[-1].value)  # last, where a product brings it along
        weights, some = self.tableau.b[: self.stages], [spread(slope) for slope in slopes]
        end = Reached(add_slopes(spread(y0), dt, weights, some), len(y0))
        return step._replace(end=end)

    @override
    def record(self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor) -> RecordedStep:
        points, slopes = self._linearize(stepping, t, dt, y0)
        slopes.append(points[-1].value)
        y1 = add_slopes(y0, dt, self.tableau.b[: self.stages], slopes)
        return RecordedStep(y1, functools.partial(self._transpose, points, dt))

    def _linearize(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor
    ) -> tuple[list[Linearization], list[Tensor]]:
        """The velocity at each stage with its graph, and its values but for the last."""
        points: list[Linearization] = []
        slopes: list[Tensor] = []
        for i in range(self.stages):
            points.append(stepping.linearize(*self._stage(i, t, dt, y0, slopes)))
            if len(points) < self.stages:
                slopes.append(points[-1].value)
        return points, slopes

    def _transpose(self, points: list[Linearization], dt: Tensor, lam: Tensor) -> StepGradient:
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
            g_dt = g_dt + torch.dot(seed, points[i].value) + self._times[i] * cotangents.t
        theta = add_thetas([cotangents.theta for cotangents in pulled.values()])
        return StepGradient(total, g_t, g_dt, theta)

    def _stage(
        self, i: int, t: Tensor, dt: Tensor, y: Tensor, slopes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Time and state of stage i, from the slopes at the stages before."""
        c = self._times[i]
        return t if c == 0 else t + c * dt, add_slopes(y, dt, self.tableau.a[i], slopes)


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


def add_slopes(y: Tensor, dt: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
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


BOGACKI_SHAMPINE = Tableau(
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    order=3,
    stability_limit=2.51,
    b_error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
"""Bogacki and Shampine 1989, "A 3(2) pair of Runge-Kutta formulas"."""

DORMAND_PRINCE = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    stability_limit=3.3,
    b_error=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
)
"""Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae"."""


@final
@SOLVERS.register("adaptive")
class Adaptive(ExplicitRungeKutta, ErrorControlled):
    r"""An embedded explicit Runge-Kutta method with error control; Dormand-Prince 5(4) by default.

    A step is accepted if the root mean square over the entries of $e / (atol + rtol
    \max(|y_0|, |y_1|))$ is at most 1, where e is the difference of the two embedded solutions.

    It lands on every time of the grid and makes as many steps between two of them as the
    tolerances ask for: give it `TimeGrid.uniform(t1, steps=1)` to leave it free. The accepted
    steps are recorded; the backward sweep takes them as they are (the controller is not
    differentiated), so that `DiscreteAdjoint` gives the exact gradient of the accepted steps.
    Checkpoint schedules count accepted steps. One that needs their number in advance (`Density`,
    `Binomial`) makes the forward solve twice.

    Cost: 6 gradients per attempted step, and 2 to choose the first step size; the exact adjoint 6
    Hessian-vector products per accepted step.

    Args:
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        tableau: an embedded tableau whose last stage is the velocity at the new state.
        controller: chooses the step sizes.
        first_step: the first step size; estimated when None.
        max_steps: the most attempted steps.

    Raises:
        InputError: if a tolerance or the first step is not positive and finite.
        CompatibilityError: if the tableau is not of that kind.
        StepLimitError: in the solve, if `max_steps` do not suffice.

    References:
        Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae".
    """

    chooses_steps = True

    def __init__(
        self,
        rtol: float = 1e-6,
        atol: float = 1e-8,
        tableau: Tableau = DORMAND_PRINCE,
        controller: PIController | None = None,
        first_step: float | None = None,
        max_steps: int = 100_000,
    ) -> None:
        super().__init__(tableau)
        if tableau.b_error is None or tableau.b != (*tableau.a[-1], 0.0):
            raise CompatibilityError(
                "Adaptive needs an embedded tableau whose last stage is the velocity at the new"
                " state, such as DORMAND_PRINCE or BOGACKI_SHAMPINE."
            )
        self.tolerances = Tolerances(
            rtol, atol, controller or PIController(), first_step, max_steps
        )
        self.error_order = tableau.order - 1
        self.attempt_gradients = len(tableau.b) - 1

    @override
    def attempt(
        self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor, slope: Tensor
    ) -> Attempt:
        tableau = self.tableau
        assert tableau.b_error is not None, "checked when constructed"
        slopes, state = [slope], y
        for i in range(1, len(tableau.b)):
            time, state = self._stage(i, t, dt, y, slopes)
            slopes.append(velocity(time, state))
        error = dt * weighted_sum(tableau.b_error, slopes)
        return Attempt(state, self.tolerances.ratio(error, y, state), slopes[-1])
