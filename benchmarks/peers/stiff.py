"""Long horizons: the stabilised solver against gradient descent at the edge of stability.

One CosMixture task (of the paper's text, whose
curvature grows tenfold on the way), float64, errors to the gradient of the flow. Evaluations are
gradients and Hessian-vector products together. The stabilised solver runs without compilation, with
which it makes stages again in the backward sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

import odeopt
from benchmarks.comparison import distance
from benchmarks.harness.costs import once
from benchmarks.peers import problems
from benchmarks.peers.measure import flow
from benchmarks.peers.problems import Problem, Setup
from benchmarks.problems import functions
from benchmarks.problems.tasks import each, move, stack

SEED = 1
LIMIT = 2.6
"""Step length times spectral radius of the coarser reference; RK4 is stable up to 2.785."""

MARGIN = 1.02
"""Steps of gradient descent over the fewest that are stable for the radii that were seen."""

LOOKS, POWERS = 12, 40
"""States at which the spectral radius is estimated, and power iterations for each."""


def problem(device: torch.device) -> Problem:
    """One task in float64."""
    inputs = stack([functions.COSMIXTURE.task(SEED, "text")]), functions.MODEL.init(SEED)
    tasks, params = move(inputs, device, torch.float64)
    return replace(problems.make("mlp", 1), tasks=tasks, params=params)


def measure(
    t1: float, tolerances: Sequence[float], device: str, compile: str | None = "inductor"
) -> dict[str, Any]:
    """The spectral radius, and errors and costs of both solvers up to t1."""
    own = problem(torch.device(device))
    rho = radius(own, t1)
    setup = Setup(own, t1, math.ceil(MARGIN * rho * t1 / 2))
    steps = math.ceil(4 / 3 * rho * t1 / LIMIT), math.ceil(rho * t1 / LIMIT)
    fine, coarse = flow(setup, steps, compile)
    order_four = (4 / 3) ** 4 - 1
    return {
        "outcome": "", "radius": rho, "stiffness": rho * t1,
        "reference_error": distance(coarse, fine) / order_four,
        "descent": _entry(setup, odeopt.Euler(), setup.steps, fine, compile),
        "stabilised": [
            {"rtol": rtol, **_entry(setup, odeopt.StabilizedRK(rtol, rtol * 1e-2), 1, fine, None)}
            for rtol in tolerances
        ],
    }  # fmt: skip


def radius(own: Problem, t1: float) -> float:
    """The largest eigenvalue of the Hessian that is found on the way."""
    train, layout = each(own.tasks)[0].train, own.raveled()[1]
    slope = grad(lambda u: own.loss(layout.unflatten(u), train))
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), odeopt.Adaptive(1e-3, 1e-5))
    times = [0.0, *(t1 * 2.0 ** (look - LOOKS) for look in range(1, LOOKS + 1))]
    grid = odeopt.TimeGrid(torch.tensor(times, dtype=torch.float64), observe=range(LOOKS + 1))
    with torch.no_grad():
        states = opt.solve(own.params, train, grid).observed
    return max(_largest(slope, layout.flatten(state, "a state")) for state in states)


def _largest(slope: Callable[[Tensor], Tensor], y: Tensor) -> float:
    pullback = vjp(slope, y)[1]
    direction, size = torch.ones_like(y) / math.sqrt(len(y)), 0.0
    for _ in range(POWERS):
        image = pullback(direction)[0]
        size = image.norm().item()
        direction = image / size
    return size


def _entry(
    setup: Setup, solver: Any, steps: int, target: Tensor, compile: str | None
) -> dict[str, Any]:
    """Errors and costs, or why there are none."""
    own = setup.problem
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(own.loss), solver, compile=compile)
    call = opt.value_and_grad(own.loss, tasks=True)
    grid = odeopt.TimeGrid.uniform(setup.t1, steps)
    results: list[odeopt.Result] = []

    def run() -> None:
        results.append(call(own.params, own.tasks.train, grid, own.tasks.validation))

    try:
        seconds = once(run, own.device)
    except odeopt.OdeoptError as error:
        return {"failure": type(error).__name__}
    gradient = own.raveled()[1].flatten(results[0].grads.params, "gradient")
    stats = results[0].stats
    return {
        "failure": "", "steps": stats.steps, "seconds": seconds,
        "error": distance(gradient, target),
        "evaluations": stats.gradient_evaluations + stats.hvps,
        "stored_states": stats.stored_states,
    }  # fmt: skip
