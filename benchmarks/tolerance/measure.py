"""The cells: all that is measured on one problem."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import count
from statistics import fmean
from typing import Any

import odeopt
from benchmarks.harness.outline import Cell
from benchmarks.tolerance.problems import FIXED, MOST_STEPS, STRETCHED, Problem, Sizes, draw
from odeopt.testing.problems import relative_error

STABILIZED = "StabilizedRK"
FINEST, COARSEST = 1e-9, 1.0

Setting = tuple[str, odeopt.ODEOptimizer, int]
"""Its name, the optimiser and the number of steps."""


def cells(sizes: Sizes) -> list[Cell]:
    """One cell per problem."""
    chosen: list[Cell] = []
    for seed in range(sizes.problems):
        family = sizes.families[seed % len(sizes.families)]
        chosen.append(Cell(f"{family} seed={seed}", partial(compute, family, seed, sizes)))
    return chosen


def compute(family: str, seed: int, sizes: Sizes) -> dict[str, Any]:
    """Both parts on the problem of a seed."""
    problem = draw(family, seed, sizes)
    truth, own = problem.truth()
    best = search(problem, truth, sizes.tolerances)
    return {
        "family": family,
        "seed": seed,
        "stiffness": problem.stiffness,
        "reference_error": own,
        "choices": [choose(problem, truth, tol, sizes) | {"best": best[tol]} for tol in best],
        "estimates": [
            {"label": label, **estimate(problem, truth, opt, steps)}
            for label, opt, steps in _configurations(problem)
        ],
    }


def cost(result: Any) -> int:
    """Gradient evaluations and Hessian-vector products."""
    return result.stats.gradient_evaluations + result.stats.hvps


def choose(problem: Problem, truth: Any, tol: float, sizes: Sizes) -> dict[str, Any]:
    """A cold call and warm ones of a fresh optimiser."""
    flow = odeopt.GradientFlow(problem.training.loss)
    opt = odeopt.from_tolerance(flow, tol, compile=problem.compile)
    costs: list[int] = []
    errors: list[float] = []
    for _ in range(1 + sizes.calls):
        try:
            result = problem.gradient(opt, 100)
        except odeopt.OdeoptError as error:
            return {"tol": tol, "failure": f"{type(error).__name__}: {error}"}
        costs.append(cost(result))
        errors.append(relative_error(result.grads.params, truth))
    return {
        "tol": tol,
        "failure": "",
        "cold_cost": costs[0],
        "cold_error": errors[0],
        "chosen": opt.describe().partition(": ")[2].split()[0],
        "warm_cost": fmean(costs[-sizes.counted :]),
        "warm_errors": errors[1:],
    }


def search(
    problem: Problem, truth: Any, tolerances: tuple[float, ...]
) -> dict[float, dict[str, Any]]:
    """The cheapest fixed setting whose true error meets each tolerance; empty without any."""
    best: dict[float, dict[str, Any]] = {tol: {} for tol in tolerances}
    for name in (*STRETCHED, "RK4", "ModifiedEuler", "Euler", STABILIZED):
        missing = set(tolerances)
        for label, opt, steps in _finer_and_finer(problem, name):
            try:
                result = problem.gradient(opt, steps)
            except odeopt.OdeoptError:
                continue
            spent, error = cost(result), relative_error(result.grads.params, truth)
            dearer = {tol for tol in tolerances if spent >= best[tol].get("cost", math.inf)}
            for tol in tolerances:
                if error <= tol:
                    missing.discard(tol)
                    if tol not in dearer:
                        best[tol] = {"cost": spent, "setting": label}
            if missing <= dearer:
                break
    return best


def _finer_and_finer(problem: Problem, name: str) -> Iterator[Setting]:
    """The settings of a solver."""
    # steps of 8 over the radius are beyond the stability of every one with fixed steps
    first = max(1.0, problem.stiffness / 8)
    for level in count():
        rtol, steps = COARSEST * 10 ** (-level / 2), round(first * 2 ** (level / 2))
        if name == STABILIZED and rtol >= FINEST:
            opt = problem.optimizer(solver=odeopt.StabilizedRK(rtol, rtol))
            yield f"{name} {rtol:.1e}", opt, 1
        elif name != STABILIZED and steps <= MOST_STEPS:
            yield f"{name} {steps}", problem.fixed(name), steps
        else:
            return


def estimate(problem: Problem, truth: Any, opt: odeopt.ODEOptimizer, steps: int) -> dict[str, Any]:
    """An estimate beside the true error."""
    try:
        result = problem.gradient(opt, steps, estimate=True)
    except odeopt.OdeoptError as error:
        return {"failure": type(error).__name__}
    return {
        "failure": "",
        "estimate": result.error.params,
        "true": relative_error(result.grads.params, truth),
        "gap": result.error.gap,
        "trusted": result.error.trusted,
    }


def _configurations(problem: Problem) -> Iterator[Setting]:
    """Fixed ones whose errors are estimated."""
    make = problem.optimizer
    for name, solver in FIXED.items():
        for length in (1.0, 0.5, 0.125):
            steps = 2 * max(1, math.ceil(problem.stiffness / length / 2))
            yield f"{name}, h rho = {length:g}", make(solver=solver), steps
    steps = 8 * max(1, math.ceil(problem.stiffness / 4))
    for name in ("ModifiedEuler", "RK4"):
        adjoint = odeopt.ContinuousAdjoint(FIXED[name])
        for share in (2, 4):
            nodes = odeopt.Density(steps // share)
            opt = make(solver=odeopt.RK4(), checkpoints=nodes, adjoint=adjoint)
            yield f"RK4 + ContinuousAdjoint({name}), 1/{share} kept", opt, steps
    for rtol in (1e-2, 1e-4, 1e-6):
        yield f"StabilizedRK {rtol:g}", make(solver=odeopt.StabilizedRK(rtol, rtol)), 1
    adjoint = odeopt.ContinuousAdjoint(odeopt.ModifiedEuler())
    own = make(solver=odeopt.DormandPrince(), adjoint=adjoint)
    yield "DormandPrince + ContinuousAdjoint(ModifiedEuler)", own, 1
    yield "Adaptive", make(solver=odeopt.Adaptive()), 1
