"""`from_tolerance`: an optimiser that chooses how to solve from the error that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from typing_extensions import override

from odeopt.engine.safety import Safety
from odeopt.errors import CompatibilityError, InputError
from odeopt.gradient.event import StopWhen
from odeopt.gradient.result import Solution
from odeopt.gradient.value_and_grad import OnFailure, ValueAndGrad
from odeopt.grid import TimeGrid, check_grid
from odeopt.inner.field import Field
from odeopt.optimizer import ODEOptimizer
from odeopt.tolerance.gradient import TunedValueAndGrad
from odeopt.tolerance.tuning import Tuning
from odeopt.tools.shown import shown
from odeopt.tools.transforms import any_requires_grad, requires_grad
from odeopt.tools.types import PyTree


def from_tolerance(
    field: Field | Callable[..., PyTree],
    tol: float,
    safety: Safety | None = None,
    compile: str | None = None,
) -> ToleranceOptimizer:
    r"""An optimiser whose gradients are within `tol` of those of the flow.

    The first call over a horizon takes the solver that needs to know nothing: `StabilizedRK` where
    the Jacobian is symmetric, or else `Adaptive`. It solves with two tolerances of a step. Their
    difference says how large the error is, by Richardson's rule, and how fine a third solve has to
    be if that is too large. While later calls go by, each method that could be cheaper (gradient
    descent, modified Euler, RK4, `Chebyshev2`, `Chebyshev3`) is measured beside the one in use, by
    a pair of solves with n and n + 1 steps, and by its distance from the gradient in use. The
    cheapest that meets the tolerance is kept, mostly within ten calls. From then on a call costs
    the plain gradient, and one in twenty is estimated; where the error has become too large all
    is measured anew. What was learnt is used for later calls over horizons within 15 %.

    The gradient is the exact one of the steps that are made (`DiscreteAdjoint`), and every state
    is kept: there are few.

    Cost: `Result.stats` counts estimates and settings that were tried as well.

    Only the ends and the observed states of a grid matter, since the solve stands for the flow.
    It is not meant for update rules, whose gradient is exact as it is.

    Examples:
        >>> import torch, odeopt
        >>> loss = lambda params, batch: ((params - batch) ** 2).sum()
        >>> opt = odeopt.from_tolerance(odeopt.GradientFlow(loss), tol=1e-3)
        >>> grid = odeopt.TimeGrid.from_lr(lr=0.01, steps=100)
        >>> res = opt.value_and_grad(loss)(torch.zeros(2), torch.ones(2), grid, torch.ones(2))
        >>> [round(g, 3) for g in res.grads.params.tolist()], res.error.params < 1e-3
        ([-0.037, -0.037], True)

    Args:
        field: a `Field` or a function `velocity(t, state, consts, hparams, batch)`.
        tol: the relative error, in the L2 norm, allowed in `grads.params` and `grads.hparams`.
        safety: as in `ODEOptimizer`.
        compile: likewise.

    Raises:
        InputError: if tol is not between 0 and 1.
        CompatibilityError: if the field is an update rule.
    """
    return ToleranceOptimizer(field, tol, safety, compile)


class ToleranceOptimizer(ODEOptimizer):
    r"""What `from_tolerance` returns: an `ODEOptimizer` that chooses its solver and its steps.

    The error that it keeps below tol is $\lVert g - g_\text{flow}\rVert / \lVert
    g_\text{flow}\rVert$, estimated as in `ErrorEstimate`; arguments, costs and the method are
    described there.
    """

    def __init__(
        self,
        field: Field | Callable[..., PyTree],
        tol: float,
        safety: Safety | None = None,
        compile: str | None = None,
    ) -> None:
        super().__init__(field, safety=safety, compile=compile)
        if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 < tol < 1:  # pyright: ignore
            raise InputError(f"tol is {shown(tol)}; expected a number between 0 and 1.")
        if not isinstance(self.field, Field):
            raise CompatibilityError(
                f"from_tolerance chooses how to follow a flow, but {type(self.field).__name__} is"
                " an update rule, whose gradient is exact: use ODEOptimizer."
            )
        self._tuning = Tuning(self.field, float(tol), self._choices.safety, compile)

    @override
    def _shown(self) -> Iterator[str]:
        yield shown(self.field)
        yield f"tol={self._tuning.tol:g}"
        if self._choices.safety != Safety():
            yield f"safety={shown(self._choices.safety)}"

    @override
    def value_and_grad(
        self,
        outer_loss: Callable[..., Any],
        tasks: bool = False,
        on_failure: OnFailure = "raise",
        has_aux: bool = False,
        stop: StopWhen | None = None,
        estimate_error: bool = False,
        many: bool = False,
        chunk_size: int | None = None,
    ) -> ValueAndGrad:
        """As in `ODEOptimizer`; `Result.error` is the last estimate, with `estimate_error` its own.

        `Result.stats` has the cost of estimates and of settings that were tried in it.
        """
        if stop is not None:
            raise CompatibilityError(
                "from_tolerance does not know where an event will end the solve: use ODEOptimizer"
                " with a solver of your choice for stop=."
            )
        base = super().value_and_grad(
            outer_loss, tasks, on_failure, has_aux, many=many, chunk_size=chunk_size
        )  # fmt: skip
        return TunedValueAndGrad(
            base.choices, base.outer, tasks, on_failure, tuning=self._tuning, judges=estimate_error
        )

    @override
    def solve(
        self,
        params: PyTree,
        batch: PyTree,
        grid: TimeGrid,
        hparams: PyTree = None,
        tasks: bool = False,
        on_failure: OnFailure = "raise",
        state: PyTree = None,
    ) -> Solution:
        """As in `ODEOptimizer`, with the setting that gradients over this horizon use.

        Where there is none yet, and nothing is differentiated, steps are chosen by their errors,
        for an error of about the tolerance in the parameters.

        Raises:
            CompatibilityError: if there is none yet and something requires grad, or the grid does.
        """
        check_grid(grid)
        working = self._tuning.search(grid, tasks).working
        inputs = (params, batch, hparams, state, grid.dt)
        tracked = torch.is_grad_enabled() and any_requires_grad(inputs)
        if tracked and (working is None or requires_grad(grid.dt)):
            raise CompatibilityError(
                "solve takes the setting that value_and_grad has found for the horizon, and no"
                " gradient w.r.t. the grid: call value_and_grad over this horizon first, or use"
                " ODEOptimizer with a solver of your choice."
            )
        setting = self._tuning.error_controlled() if working is None else working.setting
        chosen = ODEOptimizer(self.field, setting.solver, safety=self._choices.safety)
        return chosen.solve(params, batch, setting.grid(grid), hparams, tasks, on_failure, state)

    def describe(self) -> str:
        """What is used over each horizon, and what else was measured."""
        return self._tuning.describe()
