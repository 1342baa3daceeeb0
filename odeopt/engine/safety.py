"""What is checked while a gradient is computed, and what a task's status says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from odeopt.tools.arguments import check_integer, check_positive_number
from odeopt.tools.shown import Shown


class Status(IntEnum):
    """How a task ended, one code for each task.

    OK, or what stopped it: a state of the forward sweep, the outer loss, an adjoint variable or the
    gradient of the outer loss that is not finite (1, 2, 3 and 6); an interval beyond the stability
    limit of the backward method (4), or states too far apart to interpolate (5), see `Safety`. With
    `on_failure="raise"` such a task raises; with "skip" it is left out of the means.
    """

    OK = 0
    STATE_NOT_FINITE = 1
    VALUE_NOT_FINITE = 2
    ADJOINT_NOT_FINITE = 3
    UNSTABLE = 4
    STATE_TOO_COARSE = 5
    OUTER_GRADIENT_NOT_FINITE = 6


@dataclass(frozen=True)
class Safety(Shown):
    r"""Limits beyond which a gradient is refused with a `StabilityError`; None switches one off.

    The first three concern adjoints that interpolate or integrate anew (`ContinuousAdjoint`,
    `BacksolveAdjoint`) and cost nothing. `DiscreteAdjoint` is exact and needs them not.

    Args:
        step_ratio: the largest $h\lVert J^\top\lambda\rVert / \lVert\lambda\rVert$ in units of the
            stability limit of the backward method. It is a lower bound of $h\rho$.
        defect: the largest relative defect of an interpolated state in the middle of an interval.
        growth: the largest $\max_t\lVert\lambda(t)\rVert / \lVert\lambda(T)\rVert$.
        power_iterations: how many power iterations per interval estimate the spectral radius
            $\rho$ of the Jacobian, to check $h\rho$ against the stability limit: of the solver
            for exact adjoints, of the backward method for others. Each costs one
            Hessian-vector product; 0 switches the check off, 3 is enough in a smooth loop, since
            the vector is carried from step to step.
        probe: whether each call first evaluates the velocity twice, on one task, to find captured
            tensors, random numbers and counters, kinks in the model, and numbers that the model
            captures and that have changed since kernels were compiled.
    """

    step_ratio: float | None = 1.0
    defect: float | None = 0.5
    growth: float | None = 1e8
    power_iterations: int = 0
    probe: bool = True

    def __post_init__(self) -> None:
        for name in ("step_ratio", "defect", "growth"):
            check_positive_number(getattr(self, name), f"Safety.{name}", or_none=True)
        check_integer(self.power_iterations, "Safety.power_iterations", at_least=0)

    @classmethod
    def off(cls) -> Safety:
        """No limits; what is not finite is still refused."""
        return cls(step_ratio=None, defect=None, growth=None)
