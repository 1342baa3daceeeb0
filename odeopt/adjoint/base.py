"""What an adjoint is: how a solve is differentiated backward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.linearize import Differentiation, ReverseMode
from odeopt.solver.base import Solver, Stepping, StepSolver
from odeopt.solver.dynamics import Theta
from odeopt.tools.keywords import KnownKeywords


class Cost(NamedTuple):
    """What one pull costs."""

    gradients: int
    """Gradient evaluations that are not part of a Hessian-vector product."""
    hvps: int
    """Vector-Jacobian products of the velocity (for gradient fields, Hessian-vector products)."""


class Diagnostics(NamedTuple):
    """Scalars that tell whether a pull can be trusted; 0 or None where they do not apply."""

    step_ratio: Tensor
    r"""$h\lVert J^\top\lambda\rVert / \lVert\lambda\rVert$ over the stability limit."""
    defect: Tensor
    """Relative defect of the interpolated state."""
    gap: Tensor | None = None
    """How far the step that was differentiated leads from the state that the forward sweep came
    to, in units of what rounding explains; above 1 something has changed in between."""


class Pulled(NamedTuple):
    """What one pull returns: gradients of the objective w.r.t. the inputs of the interval."""

    lam: Tensor
    t: Tensor
    dt: Tensor
    theta: Theta
    diagnostics: Diagnostics


class Interval(NamedTuple):
    """One interval of the backward sweep."""

    t: Tensor
    """Its start, 0-dim."""
    dt: Tensor
    """Its length, 0-dim."""
    y0: Tensor
    """The state at its start, shape [d]."""
    y1: Tensor
    """The state at its end."""


class Adjoint(KnownKeywords):
    """How a solve is differentiated backward: a `LocalAdjoint` or a `WholeAdjoint`."""

    differentiation: Differentiation = ReverseMode()
    """How the field is differentiated."""

    order: int | None = None
    """The order of its own method; None where it differentiates the steps as they were made."""

    consistent: bool = True
    """Whether its gradient converges to that of the flow as the grid is refined."""

    path_dependent: bool = True
    """Whether it differentiates the path; else the point at which the path ends."""

    needs_length: bool = False
    """Whether the number of steps must be known before the forward sweep."""

    needs_velocity: bool = True
    """Whether it evaluates a velocity between or beyond the steps that were made; else it works
    for update rules and streams of batches as well."""

    exact: bool = False
    """Whether it is the exact gradient of the steps that were made: growth of the adjoint variable
    is then no sign of instability."""

    @property
    def pulls_graphs(self) -> bool:
        """Whether a step can be pulled through the graph it was made with."""
        return False

    @override
    def _given(self) -> Mapping[str, Any]:
        by_default = type(self.differentiation) is ReverseMode
        return {"differentiation": None if by_default else self.differentiation}


class LocalAdjoint(Adjoint, ABC):
    """Goes backward interval by interval."""

    replays: bool
    """Whether it needs every state (replayed where it was not kept) or only a mesh."""

    pulls_steps: bool = False
    """Whether its pull is `StepSolver.pull` of the step that was made, and nothing more. False in a
    subclass with a `pull` of its own that does not say so."""

    @property
    @override
    def pulls_graphs(self) -> bool:
        return self.pulls_steps and not self.differentiation.value_cost

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "pull" in vars(cls) and "pulls_steps" not in vars(cls):
            cls.pulls_steps = False

    def stability_limit(self, solver: Solver) -> float | None:
        r"""The largest stable $dt\,\rho$ of a pull over a step of a solver; None if not known."""
        return solver.stability_limit if isinstance(solver, StepSolver) else None

    @abstractmethod
    def pull(self, solver: Solver, stepping: Stepping, interval: Interval, lam: Tensor) -> Pulled:
        """Take lam from the end of an interval to its start. Pure, on one task."""

    @abstractmethod
    def cost(self, solver: Solver) -> Cost:
        """The cost of one pull."""

    def check(self, solver: Solver) -> None:
        """Raise `CompatibilityError` if it cannot differentiate this solver."""

    def first_step(self, n: int) -> int:
        """The index of the first step that is pulled; steps before it count as the identity."""
        return 0


@dataclass(frozen=True, eq=False)
class Sweep:
    """A finished forward sweep, for adjoints that look at all of it.

    Attributes:
        y0: the initial state.
        y_end: the final state, shape [d] or [tasks, d].
        times: shape [n + 1] or [tasks, n + 1], in the dtype of the state.
        cotangents: gradients of the outer loss w.r.t. observed states, by index.
        batched: batches a function of (t, dt, y, lam, theta, data) over tasks.
        stepping: binds the field to theta and data inside such a function.
        theta: as the batched function takes it.
        data: likewise.
    """

    y0: Tensor
    y_end: Tensor
    times: Tensor
    cotangents: dict[int, Tensor]
    batched: Callable[..., Any]
    stepping: Callable[..., Stepping]
    theta: Theta
    data: Any


class Swept(NamedTuple):
    """The result of a whole backward sweep."""

    lam: Tensor
    """At the start, shape [d] or [tasks, d]."""
    t: Tensor
    """Gradients w.r.t. the start of each step, shape [n] or [tasks, n]."""
    dt: Tensor
    """Gradients w.r.t. the length of each step."""
    theta: Theta | None
    """None where no step was pulled; with tasks, leaves carry a leading task dimension."""
    growth: Tensor
    r"""$\max_t \lVert\lambda(t)\rVert / \lVert\lambda(T)\rVert$, shape [] or [tasks]."""
    mismatch: Tensor
    """How far a state reconstructed at the start is from the initial one, relative to the way
    between the two ends; 0 where states were kept; shape [] or [tasks]."""
    reports: Mapping[str, Tensor] = MappingProxyType({})
    """What else the adjoint has to say, by name; shape [] or [tasks]."""


class WholeAdjoint(Adjoint, ABC):
    """Looks at the whole solve; no state but the last is kept for it."""

    @abstractmethod
    def backward(self, sweep: Sweep, lam: Tensor) -> tuple[Swept, Cost]:
        """Take lam from the end to the start, and say what it cost in total."""
