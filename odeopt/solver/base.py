"""What a solver is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError
from odeopt.solver.dynamics import Data, Differentiate, FlatField, Linearization, Theta
from odeopt.tools import autodiff
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.types import Velocity

COMPARED = 2**16
"""So many entries of a state are compared at most, evenly spread: a loss that has changed changes
nearly all of them, and a comparison is to cost next to nothing."""


class Reached(NamedTuple):
    """Some entries of a state."""

    entries: Tensor
    """Shape [..., n]."""
    of: int
    """They are spread over so many of its first entries."""

    def gap(self, y0: Tensor, y1: Tensor) -> Tensor:
        r"""The distance from y1 in units of what rounding explains: above 1 it does not.

        Allowed are $\sqrt\epsilon$ of the way from y0 to y1, and a few units in the last place of
        y1, which matter where a step is tiny. Shapes [..., d] to [...].
        """
        y0, y1 = (spread(y[..., : self.of]) for y in (y0, y1))
        eps, tiny = torch.finfo(y1.dtype).eps, torch.finfo(y1.dtype).tiny
        way, size = (torch.linalg.vector_norm(y, dim=-1) for y in (y1 - y0, y1))
        missed = torch.linalg.vector_norm(self.entries - y1, dim=-1)
        return missed / (eps**0.5 * way + 4 * eps * size + tiny)


def reached(state: Tensor) -> Reached:
    """What is compared of a state, or of as many of its first entries as are known."""
    return Reached(spread(state), state.shape[-1])


def spread(state: Tensor) -> Tensor:
    """The entries that are compared, a view."""
    return state[..., :: max(state.shape[-1] // COMPARED, 1)]


class StepGradient(NamedTuple):
    """Gradients of <lam, y1> w.r.t. the inputs of one step."""

    lam: Tensor
    """w.r.t. y0, shape [d]."""
    t: Tensor
    """w.r.t. the start time, 0-dim."""
    dt: Tensor
    """w.r.t. the step size, 0-dim."""
    theta: Theta
    end: Reached | None = None
    """Where the step that was differentiated leads, as `reached(y1)` has it, to be compared with
    where the forward sweep came to. Without it the step is made again for that."""


class RecordedStep(NamedTuple):
    """A step that was made with its graph, so that pulling it costs the products alone."""

    end: Tensor
    """The state after the step, shape [d]; the same bits as without a graph."""
    pullback: Callable[[Tensor], StepGradient]
    """`pullback(lam)`: as `StepSolver.pull` gives it, but that nothing is said about the end."""


class FlatRule(ABC):
    """An update rule on flat states."""

    records: bool = True
    """Whether `record` keeps the whole graph, so that nothing is evaluated again."""

    @abstractmethod
    def update(self, k: Tensor, lr: Tensor, y: Tensor, theta: Theta, data: Data) -> Tensor:
        """The state after update k, shape [d]."""

    @abstractmethod
    def pull(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, lam: Tensor,
        theta: Theta, data: Data,
    ) -> StepGradient:  # fmt: skip
        """The exact gradient of <lam, update>."""

    @abstractmethod
    def record(
        self, differentiate: Differentiate, k: Tensor, lr: Tensor, y: Tensor, theta: Theta,
        data: Data,
    ) -> RecordedStep:  # fmt: skip
        """The update with its graph."""


class Stepping(NamedTuple):
    """All that a step needs beside t, dt and y."""

    dynamics: FlatField | FlatRule
    differentiate: Differentiate
    theta: Theta
    data: Data

    @property
    def field(self) -> FlatField:
        """The field; a solver of fields never gets an update rule."""
        assert not isinstance(self.dynamics, FlatRule), "checked when the choices are made"
        return self.dynamics

    def velocity(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt with theta and data bound."""
        return self.field.velocity(t, y, self.theta, self.data)

    def linearize(self, t: Tensor, y: Tensor) -> Linearization:
        """The velocity at a point with its vector-Jacobian products, theta and data bound."""
        return self.differentiate(self.field, t, y, self.theta, self.data)


class Solver(KnownKeywords, ABC):
    """Advances a state through the intervals of a time grid."""

    order: int
    """The order of convergence."""

    real_spectrum: bool = False
    """Whether it is stable for fields with a symmetric Jacobian only."""

    chooses_steps: bool = False
    """Whether it puts steps of its own between the times of the grid."""

    is_descent: bool = False
    """Whether its steps on gradient flow are those of gradient descent, wanted for themselves."""

    takes_rules: bool = False
    """Whether it is made for update rules, which bring their own steps, and for nothing else."""

    def made_with(self, key: int | None) -> Solver:
        """What made a step, by the key that the attempts of a solve gave it (`Attempts.method`)."""
        assert key is None, "a solver that gives keys knows them"
        return self


class StepSolver(Solver):
    """Makes one step per interval, as a pure function of its inputs."""

    stages: int
    """Gradient evaluations per step."""

    error_constant: float = 1.0
    """Of the leading term of the error, in any unit; it matters where it depends on the stages."""

    pull_gradients: int = 0
    """Gradient evaluations of a pull beside its Hessian-vector products."""

    stability_limit: float
    r"""The largest stable $dt\,\rho$ for a decaying real mode with rate $\rho$."""

    by_stage: bool = False
    """Whether it is compiled stage by stage, since whole steps would be too much. Then `step`,
    `attempt` and `pull` work on all tasks at once, and `pull` uses `stepping.linearize` alone."""

    records: bool = True
    """Whether `record` keeps the graph of a step. False in a subclass that overrides `pull` alone,
    whose own pull is then called."""

    moves_at_zero: bool = False
    """Whether a step of zero length may change the state; else a task waits with such steps."""

    @override
    def made_with(self, key: int | None) -> StepSolver:
        assert key is None, "a solver that gives keys knows them"
        return self

    def combined(self, keys: Sequence[int], lengths: Sequence[float]) -> int:
        """The key of the method for a step put together from several, as stable as those were.

        Args:
            keys: of the methods that made the single steps.
            lengths: the length of the whole over that of each.
        """
        raise NotImplementedError(f"{type(self).__name__} gives its methods no keys")

    @abstractmethod
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        """The state after one step of length dt from (t, y); shape [d]."""

    def advance(self, stepping: Stepping, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        """The state after one step, from all that there is to know."""
        return self.step(stepping.velocity, t, dt, y)

    def pull(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor, lam: Tensor
    ) -> StepGradient:
        r"""The exact gradient of $\langle\lambda, \text{step}(t, dt, y_0)\rangle$.

        The default differentiates `step` with reverse mode; it costs one Hessian-vector product
        per stage. Override it, and `record`, where a recurrence does better.
        """
        y1, pullback = StepSolver.record(self, stepping, t, dt, y0)
        return pullback(lam)._replace(end=reached(y1))

    def record(self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor) -> RecordedStep:
        """The step with its graph, which lives as long as the result.

        Asked for by the eager engine where there are no tasks, so that the graph is one of plain
        autograd.
        """

        def stepped(t: Tensor, dt: Tensor, y: Tensor, theta: Theta) -> Tensor:
            field, data = stepping.field, stepping.data
            return self.step(lambda s, u: field.velocity(s, u, theta, data), t, dt, y)

        y1, linearized = autodiff.vjp(stepped, t, dt, y0, stepping.theta)

        def pullback(lam: Tensor) -> StepGradient:
            g_t, g_dt, g_y, g_theta = linearized(lam)
            return StepGradient(g_y, g_t, g_dt, g_theta)

        return RecordedStep(y1, pullback)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "record" in vars(cls) or "pull" in vars(cls):
            cls.records = "record" in vars(cls)


class GridSolver(Solver):
    """Chooses its own steps inside a library; gives the states at grid times only."""

    def coarser(self, factor: float) -> GridSolver:
        """The same with an error larger by a factor; a fixed-step method follows the grid."""
        return self

    @abstractmethod
    def solve(self, velocity: Velocity, times: Tensor, y0: Tensor) -> tuple[Tensor, int]:
        """The states at `times` (shape [n], strictly increasing), stacked: [n, ...].

        With tasks, y0 is [tasks, d] and the velocity maps [tasks, d] to [tasks, d].

        Returns:
            The states, and the number of velocity evaluations.
        """


class RuleSteps(StepSolver):
    """One update per interval; its time is the index of the step, its length the learning rate."""

    order = 1
    stages = 1
    stability_limit = math.inf
    moves_at_zero = True
    takes_rules = True

    def __init__(self, pull_gradients: int = 0) -> None:
        self.pull_gradients = pull_gradients

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        raise CompatibilityError("an update rule has no velocity: it brings its own steps.")

    @override
    def advance(self, stepping: Stepping, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        return _rule_of(stepping).update(t, dt, y, stepping.theta, stepping.data)

    @override
    def pull(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor, lam: Tensor
    ) -> StepGradient:
        differentiate, theta, data = stepping.differentiate, stepping.theta, stepping.data
        return _rule_of(stepping).pull(differentiate, t, dt, y0, lam, theta, data)

    @override
    def record(self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor) -> RecordedStep:
        differentiate, theta, data = stepping.differentiate, stepping.theta, stepping.data
        return _rule_of(stepping).record(differentiate, t, dt, y0, theta, data)


def _rule_of(stepping: Stepping) -> FlatRule:
    assert isinstance(stepping.dynamics, FlatRule), "chosen together with its rule"
    return stepping.dynamics
