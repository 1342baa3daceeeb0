"""An embedded Runge-Kutta method that chooses its own steps."""

from __future__ import annotations

from typing import final

from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError
from odeopt.registry import SOLVERS
from odeopt.solver.attempts import Attempt
from odeopt.solver.error_control import ErrorControlled
from odeopt.solver.runge_kutta import ExplicitRungeKutta, advance, shift, weighted_sum
from odeopt.solver.step_control import PIController, Tolerances
from odeopt.solver.tableau import DORMAND_PRINCE, Tableau
from odeopt.tools.types import Velocity


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
        slopes = [slope]
        state = y
        for row, c in list(zip(tableau.a, tableau.c, strict=True))[1:]:
            state = advance(y, dt, row, slopes)
            slopes.append(velocity(shift(t, c, dt), state))
        error = dt * weighted_sum(tableau.b_error, slopes)
        return Attempt(state, self.tolerances.ratio(error, y, state), slopes[-1])
