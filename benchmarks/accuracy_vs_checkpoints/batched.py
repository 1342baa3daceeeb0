"""Gradients of many random starts at once: each start is a task with its own initial state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.accuracy_vs_checkpoints.cases import Case
from benchmarks.problems.tasks import Task

FINE = 512
"""Grid times between which nodes are chosen."""


class Start(NamedTuple):
    """Random starts of a case, on a device."""

    case: Case
    params: dict[str, Tensor]
    states: dict[str, Tensor]
    tasks: Task


class Measured(NamedTuple):
    """Gradients of shape [starts, d] and what they cost."""

    gradients: Tensor
    stats: odeopt.Stats


def start(case: Case, seeds: Sequence[int], device: torch.device) -> Start:
    """The initialisations and tasks of some seeds."""
    states = {name: leaf.to(device) for name, leaf in case.initial_states(seeds).items()}
    params = {name: leaf[0] for name, leaf in states.items()}
    return Start(case, params, states, case.tasks(seeds).to(device, torch.float64))


def gradients(opt: odeopt.ODEOptimizer, begin: Start, grid: odeopt.TimeGrid) -> Measured:
    """The gradient of each start's own validation loss w.r.t. its own initialisation."""
    states = {name: leaf.detach().requires_grad_() for name, leaf in begin.states.items()}
    sol = opt.solve(begin.params, begin.tasks.train, grid, tasks=True, state=states)
    values = torch.func.vmap(begin.case.loss)(sol.params, begin.tasks.validation)
    found = torch.autograd.grad(values.sum(), list(states.values()))
    return Measured(torch.cat([g.flatten(1) for g in found], dim=1), sol.stats)


def errors(found: Tensor, reference: Tensor) -> Tensor:
    """Relative L2 errors, shape [starts]."""
    return (found - reference).norm(dim=1) / reference.norm(dim=1)


def reference(begin: Start, t1: float, steps: int) -> tuple[Tensor, float]:
    """The gradient of the flow by RK4 and its exact adjoint, and its own error.

    The error is that of order 4, from the same with half the steps; the worst start counts.
    """
    flow = odeopt.GradientFlow(begin.case.loss)
    opt = odeopt.ODEOptimizer(flow, odeopt.RK4(), compile="trace")
    fine = gradients(opt, begin, odeopt.TimeGrid.uniform(t1, steps)).gradients
    coarse = gradients(opt, begin, odeopt.TimeGrid.uniform(t1, steps // 2)).gradients
    return fine, errors(coarse, fine).max().item() / 15


class References:
    """References by horizon, each computed once per process."""

    def __init__(self, begin: Start) -> None:
        self.begin = begin
        self._get = cache(self._compute)

    def __call__(self, t1: float) -> tuple[Tensor, float]:
        """The gradient of the flow up to t1, and its own error."""
        return self._get(t1)

    def _compute(self, t1: float) -> tuple[Tensor, float]:
        return reference(self.begin, t1, reference_steps(self.begin.case, t1))


def reference_steps(case: Case, t1: float) -> int:
    """RK4 steps of the reference up to t1; half as dense beyond t1 = 20, where it costs most."""
    rate = case.rate if t1 <= 20 else case.rate / 2
    return max(64, 2 * int(rate * t1 / 2))


def flow_optimizer(
    case: Case,
    backward: odeopt.Euler | odeopt.ModifiedEuler | odeopt.RK4,
    nodes: odeopt.Density | odeopt.Graded,
    safety: odeopt.Safety | None = None,
    compile: str | None = None,
) -> odeopt.ODEOptimizer:
    """The paper's Algorithm 2 with any backward method and any choice of nodes."""
    return odeopt.ODEOptimizer(
        odeopt.GradientFlow(case.loss),
        odeopt.DormandPrince(rtol=1e-10, atol=1e-12),
        odeopt.ContinuousAdjoint(backward),
        nodes,
        safety,
        compile,
    )


def guarded(make: Any, begin: Start, grid: odeopt.TimeGrid, target: Tensor) -> dict[str, Any]:
    """Errors of an optimiser, and which guard refuses its gradient, if one does.

    Args:
        make: `make(safety) -> ODEOptimizer`.
        begin: the starts.
        grid: the steps.
        target: the gradients to compare with.
    """
    guard = ""
    try:
        found = gradients(make(odeopt.Safety()), begin, grid)
    except odeopt.DivergenceError as error:  # there is no number to show
        return {"errors": [float("nan")], "guard": f"{type(error).__name__}: {error}"}
    except odeopt.OdeoptError as error:
        guard = f"{type(error).__name__}: {error}"
        try:
            found = gradients(make(odeopt.Safety.off()), begin, grid)
        except odeopt.OdeoptError:
            return {"errors": [float("nan")], "guard": guard}
    return {
        "errors": errors(found.gradients, target).tolist(),
        "guard": guard,
        "stored_states": found.stats.stored_states,
        "gradient_evaluations": found.stats.gradient_evaluations,
        "hvps": found.stats.hvps,
    }
