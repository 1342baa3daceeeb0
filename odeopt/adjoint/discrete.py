"""The exact gradient of what was computed, and what is left when parts of it are dropped."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import (
    Cost,
    Diagnostics,
    Interval,
    LocalAdjoint,
    Pulled,
    Sweep,
    Swept,
    WholeAdjoint,
)
from odeopt.adjoint.linearize import Differentiation, check_differentiation
from odeopt.errors import CompatibilityError
from odeopt.registry import ADJOINTS
from odeopt.solver.base import Solver, StepGradient, Stepping, StepSolver, reached
from odeopt.tools.arguments import check_integer


class ExactAdjoint(LocalAdjoint):
    """Transposes the steps of the solver, replaying states that were not kept."""

    replays = True
    needs_velocity = False
    exact = True
    pulls_steps = True

    def __init__(self, differentiation: Differentiation | None = None) -> None:
        self.differentiation = check_differentiation(differentiation)

    @override
    def check(self, solver: Solver) -> None:
        if not isinstance(solver, StepSolver):
            raise CompatibilityError(
                f"{type(self).__name__} cannot replay {type(solver).__name__}, which chooses its"
                " own steps inside a library. Use ContinuousAdjoint(ModifiedEuler()) with it, or a"
                " step solver such as RK4() or Adaptive(rtol, atol)."
            )

    @override
    def pull(self, solver: Solver, stepping: Stepping, interval: Interval, lam: Tensor) -> Pulled:
        assert isinstance(solver, StepSolver), "checked before"
        t, dt, y0, _ = interval
        step = solver.pull(stepping, t, dt, y0, lam)
        if step.end is None:
            step = step._replace(end=reached(solver.advance(stepping, t, dt, y0)))
        return as_pulled(step, interval)

    @override
    def cost(self, solver: Solver) -> Cost:
        assert isinstance(solver, StepSolver), "checked before"
        extra = (solver.stages - 1) * self.differentiation.value_cost + solver.pull_gradients
        return Cost(gradients=extra, hvps=solver.stages)


def as_pulled(step: StepGradient, interval: Interval) -> Pulled:
    """The gradient of a step that knows where it leads, compared with where the solve came to."""
    assert step.end is not None, "found where the solver does not say it"
    zero = torch.zeros_like(interval.dt)
    gap = step.end.gap(interval.y0, interval.y1)
    return Pulled(step.lam, step.t, step.dt, step.theta, Diagnostics(zero, zero, gap))


@final
@ADJOINTS.register("discrete")
class DiscreteAdjoint(ExactAdjoint):
    r"""The exact gradient of the discrete map: reverse-mode differentiation, step by step.

    For gradient descent $\lambda_k = \lambda_{k+1} - \alpha\nabla^2 L(u_k)\lambda_{k+1}$. It equals
    autograd through the unrolled loop to rounding, whatever is kept, and never holds more than
    the graph of one step. Cost: one Hessian-vector product per stage, plus the replayed steps.

    Args:
        differentiation: how Hessian-vector products are made, `ReverseMode()` by default.

    Raises:
        CompatibilityError: from `ODEOptimizer`, with a solver that gives states at grid times only.

    References:
        Hager 2000; Sanz-Serna 2016, "Symplectic Runge-Kutta schemes for adjoint equations".
    """


@final
@ADJOINTS.register("truncated", example=lambda: TruncatedAdjoint(4))
class TruncatedAdjoint(ExactAdjoint):
    r"""Differentiates the last `steps` steps exactly and takes the others for the identity.

    Biased: $\lambda_0 := \lambda_{N-K}$, and hyperparameters count in the last K steps only. Only
    the states of those steps are kept. A task that stops before others, or chooses its own steps,
    counts those that it makes. Cost: K Hessian-vector products per stage.

    Args:
        steps: K, the number of last steps.
        differentiation: how Hessian-vector products are made, `ReverseMode()` by default.

    Raises:
        InputError: if steps is not a positive integer.
        CompatibilityError: from `ODEOptimizer`, with a solver that gives states at grid times only.

    References:
        Shaban et al. 2019, "Truncated Back-propagation for Bilevel Optimization".
    """

    consistent = False
    needs_length = True

    def __init__(self, steps: int, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation)
        self.steps = check_integer(steps, "steps")

    @override
    def first_step(self, n: int) -> int:
        return max(n - self.steps, 0)


@final
@ADJOINTS.register("first-order")
class FirstOrderAdjoint(WholeAdjoint):
    r"""Takes the whole solve for the identity: $\lambda_0 := \lambda_T$, as in FOMAML.

    Nothing is kept and nothing is differentiated but the outer loss; the gradients w.r.t.
    hyperparameters hold their direct part only and those w.r.t. the step sizes are zero. Over
    long horizons the direction is almost unrelated to the gradient (`docs/choosing.md`).

    Cost: none beside the forward sweep and one gradient of the outer loss.

    References:
        Finn et al. 2017, "Model-Agnostic Meta-Learning", section 5.2.
    """

    consistent = False
    needs_velocity = False

    @override
    def backward(self, sweep: Sweep, lam: Tensor) -> tuple[Swept, Cost]:
        for cotangent in sweep.cotangents.values():
            lam = lam + cotangent
        zero = torch.zeros_like(sweep.times[..., 1:])
        growth = torch.ones_like(sweep.times[..., 0])
        nothing = torch.zeros_like(growth)
        return Swept(lam, zero, zero, None, growth, nothing), Cost(gradients=0, hvps=0)
