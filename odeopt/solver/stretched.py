"""Runge-Kutta methods with long stable steps, for gradient flows of moderate stiffness."""

from __future__ import annotations

from typing import final

from odeopt.registry import SOLVERS
from odeopt.solver.runge_kutta import ExplicitRungeKutta
from odeopt.solver.tableau import CHEBYSHEV_2, CHEBYSHEV_3


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
