"""The cells: all that is measured on one problem."""

from __future__ import annotations

import math
from functools import partial
from statistics import fmean
from typing import Any

import odeopt
from benchmarks.harness.outline import Cell
from benchmarks.tolerance.problems import FIXED, MOST_STEPS, STRETCHED, Problem, draw
from benchmarks.tolerance.sizes import Sizes
from odeopt.testing.problems import relative_error

STABILIZED = "StabilizedRK"
FINEST, COARSEST = 1e-9, 1.0


def cells(sizes: Sizes) -> list[Cell]:
    """One cell per problem."""
    return [Cell(key(i, sizes), partial(compute, i, sizes)) for i in range(sizes.problems)]


def key(seed: int, sizes: Sizes) -> str:
    """The key of a cell."""
    return f"{sizes.families[seed % len(sizes.families)]} seed={seed}"


def compute(seed: int, sizes: Sizes) -> dict[str, Any]:
    """Both parts on the problem of a seed."""
    problem = draw(sizes.families[seed % len(sizes.families)], seed, sizes)
    truth, own = problem.truth()
    best = search(problem, truth, sizes.tolerances)
    return {
        "family": problem.family,
        "seed": seed,
        "stiffness": problem.stiffness,
        "reference_error": own,
        "choices": [choose(problem, truth, tol, sizes) | {"best": best[tol]} for tol in best],
        "estimates": estimates(problem, truth),
    }


def cost(result: Any) -> int:
    """Gradient evaluations and Hessian-vector products."""
    return result.stats.gradient_evaluations + result.stats.hvps


def choose(problem: Problem, truth: Any, tol: float, sizes: Sizes) -> dict[str, Any]:
    """A cold call and warm ones of a fresh optimiser."""
    opt = odeopt.from_tolerance(odeopt.GradientFlow(problem.loss), tol, compile=problem.compile)
    found: list[tuple[int, float]] = []
    for _ in range(1 + sizes.calls):
        try:
            result = problem.gradient(opt, 100)
        except odeopt.OdeoptError as error:
            return {"tol": tol, "failure": f"{type(error).__name__}: {error}"}
        found.append((cost(result), relative_error(result.grads.params, truth)))
    warm = found[-sizes.counted :]
    return {
        "tol": tol,
        "failure": "",
        "cold_cost": found[0][0],
        "cold_error": found[0][1],
        "chosen": opt.describe().partition(": ")[2].split()[0],
        "warm_cost": fmean(spent for spent, _ in warm),
        "warm_errors": [error for _, error in found[1:]],
    }


def search(
    problem: Problem, truth: Any, tolerances: tuple[float, ...]
) -> dict[float, dict[str, Any]]:
    """The cheapest fixed setting whose true error meets each tolerance."""
    best: dict[float, dict[str, Any]] = {
        tol: {"cost": math.inf, "setting": ""} for tol in tolerances
    }
    for name in (*STRETCHED, "RK4", "ModifiedEuler", "Euler", STABILIZED):
        missing, level = set(tolerances), 0
        while missing:
            setting = _setting(problem, name, level)
            if setting is None:
                break
            level += 1
            label, opt, steps = setting
            try:
                result = problem.gradient(opt, steps)
            except odeopt.OdeoptError:
                continue
            spent, error = cost(result), relative_error(result.grads.params, truth)
            for tol in tolerances:
                if error <= tol:
                    missing.discard(tol)
                    if spent < best[tol]["cost"]:
                        best[tol] = {"cost": spent, "setting": label}
            if all(spent >= best[tol]["cost"] for tol in missing):
                break
    return {tol: found if found["setting"] else {} for tol, found in best.items()}


def _setting(
    problem: Problem, name: str, level: int
) -> tuple[str, odeopt.ODEOptimizer, int] | None:
    if name == STABILIZED:
        rtol = COARSEST * 10 ** (-level / 2)
        found = f"{name} {rtol:.1e}", problem.optimizer(solver=odeopt.StabilizedRK(rtol, rtol)), 1
        return found if rtol >= FINEST else None
    # steps of 8 over the radius are beyond the stability of every one of them
    first = max(1.0, problem.stiffness / 8)
    steps = round(first * 2 ** (level / 2))
    if steps > MOST_STEPS:
        return None
    return f"{name} {steps}", problem.fixed(name), steps


def estimates(problem: Problem, truth: Any) -> list[dict[str, Any]]:
    """Estimates beside true errors, of fixed configurations."""
    found: list[dict[str, Any]] = []
    for label, settings, steps in _configurations(problem):
        opt = problem.optimizer(**settings)
        try:
            result = problem.gradient(opt, steps, estimate=True)
        except odeopt.OdeoptError as error:
            found.append({"label": label, "failure": type(error).__name__})
            continue
        found.append(
            {
                "label": label,
                "failure": "",
                "estimate": result.error.params,
                "true": relative_error(result.grads.params, truth),
                "gap": result.error.gap,
                "trusted": result.error.trusted,
            }
        )
    return found


def _configurations(problem: Problem) -> list[tuple[str, dict[str, Any], int]]:
    found: list[tuple[str, dict[str, Any], int]] = []
    for name, solver in FIXED.items():
        for length in (1.0, 0.5, 0.125):
            steps = 2 * max(1, math.ceil(problem.stiffness / length / 2))
            found.append((f"{name}, h rho = {length:g}", {"solver": solver}, steps))
    steps = 8 * max(1, math.ceil(problem.stiffness / 4))
    continuous = {
        "ModifiedEuler": odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
        "RK4": odeopt.ContinuousAdjoint(odeopt.RK4()),
    }
    for name, adjoint in continuous.items():
        for share in (2, 4):
            kept = {"checkpoints": odeopt.Density(steps // share), "adjoint": adjoint}
            label = f"RK4 + ContinuousAdjoint({name}), 1/{share} kept"
            found.append((label, {"solver": odeopt.RK4(), **kept}, steps))
    for rtol in (1e-2, 1e-4, 1e-6):
        solver = odeopt.StabilizedRK(rtol, rtol)
        found.append((f"StabilizedRK {rtol:g}", {"solver": solver}, 1))
    own = {"solver": odeopt.DormandPrince(), "adjoint": continuous["ModifiedEuler"]}
    found.append(("DormandPrince + ContinuousAdjoint(ModifiedEuler)", own, 1))
    found.append(("Adaptive", {"solver": odeopt.Adaptive()}, 1))
    return found
