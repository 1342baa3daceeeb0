"""Long horizons: the stabilised solver against gradient descent at the edge of stability.

One CosMixture task (of the paper's text, whose
curvature grows tenfold on the way), float64, errors to the gradient of the flow. Evaluations are
gradients and Hessian-vector products together. The stabilised solver runs without compilation, with
which it makes stages again in the backward sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

import odeopt
from benchmarks.harness.timing import once
from benchmarks.peers import problems, targets
from benchmarks.peers.problems import Problem
from benchmarks.peers.runner import Setup
from benchmarks.problems import cosmixture
from benchmarks.problems.tasks import stack

SEED = 1
LIMIT = 2.6
"""Step length times spectral radius of the coarser reference; RK4 is stable up to 2.785."""

MARGIN = 1.02
"""Steps of gradient descent over the fewest that are stable for the radii that were seen."""

LOOKS, POWERS = 12, 40
"""States at which the spectral radius is estimated, and power iterations for each."""


@dataclass(frozen=True)
class Job:
    """What a process measures.

    Attributes:
        t1: The horizon.
        tolerances: Of the stabilised solver.
        device: Where to compute.
        compile: How the kernels of gradient descent and of the reference are run.
    """

    t1: float
    tolerances: tuple[float, ...]
    device: str
    compile: str | None = "inductor"


def problem(device: torch.device) -> Problem:
    """One task in float64."""
    found = problems.make("mlp", 1)
    task = stack([cosmixture.task(SEED, "text")])
    params = cosmixture.initial_parameters(SEED)
    return replace(found, tasks=task, params=params).to(device, torch.float64)


def measure(job: Job) -> dict[str, Any]:
    """The spectral radius, and errors and costs of both solvers."""
    own = problem(torch.device(job.device))
    rho = radius(own, job.t1)
    setup = Setup(own, job.t1, math.ceil(MARGIN * rho * job.t1 / 2))
    steps = math.ceil(4 / 3 * rho * job.t1 / LIMIT), math.ceil(rho * job.t1 / LIMIT)
    fine, coarse = targets.flow(setup, steps, job.compile)
    order_four = (4 / 3) ** 4 - 1

    return {
        "outcome": "", "radius": rho, "stiffness": rho * job.t1,
        "reference_error": ((coarse - fine).norm() / fine.norm()).item() / order_four,
        "descent": _entry(setup, odeopt.Euler(), setup.steps, fine, job.compile),
        "stabilised": [
            {"rtol": rtol, **_entry(setup, odeopt.StabilizedRK(rtol, rtol * 1e-2), 1, fine, None)}
            for rtol in job.tolerances
        ],
    }  # fmt: skip


def radius(own: Problem, t1: float) -> float:
    """The largest eigenvalue of the Hessian that is found on the way."""
    train, layout = own.each()[0].train, own.raveled()[1]
    slope = grad(lambda u: own.loss(layout.unflatten(u), train))
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), odeopt.Adaptive(1e-3, 1e-5))
    times = [0.0, *(t1 * 2.0 ** (look - LOOKS) for look in range(1, LOOKS + 1))]
    grid = odeopt.TimeGrid(torch.tensor(times, dtype=torch.float64), observe=range(LOOKS + 1))
    with torch.no_grad():
        states = opt.solve(own.params, train, grid).observed
    return max(_largest(slope, layout.flatten(state, "a state")) for state in states)


def _largest(slope: Callable[[Tensor], Tensor], y: Tensor) -> float:
    pullback = vjp(slope, y)[1]
    direction, found = torch.ones_like(y) / math.sqrt(len(y)), 0.0
    for _ in range(POWERS):
        image = pullback(direction)[0]
        found = image.norm().item()
        direction = image / found
    return found


def _entry(
    setup: Setup, solver: Any, steps: int, target: Tensor, compile: str | None
) -> dict[str, Any]:
    """Errors and costs, or why there are none."""
    own = setup.problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), solver, compile=compile)
    call = opt.value_and_grad(own.loss, tasks=True)
    grid = odeopt.TimeGrid.uniform(setup.t1, steps)
    found: list[odeopt.Result] = []

    def run() -> None:
        found.append(call(own.params, own.tasks.train, grid, own.tasks.validation))

    try:
        seconds = once(run, own.device)
    except odeopt.OdeoptError as error:
        return {"failure": type(error).__name__}
    gradient = own.raveled()[1].flatten(found[0].grads.params, "gradient")
    stats = found[0].stats
    return {
        "failure": "", "steps": stats.steps, "seconds": seconds,
        "error": ((gradient - target).norm() / target.norm()).item(),
        "evaluations": stats.gradient_evaluations + stats.hvps,
        "stored_states": stats.stored_states,
    }  # fmt: skip
