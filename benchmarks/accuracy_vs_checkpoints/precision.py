"""Work-precision: error against memory, evaluations and seconds, for every adjoint and schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.accuracy_vs_checkpoints.cases import Case, cosmixture_case, digits_cases
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness.registry import Preset, Settings
from benchmarks.harness.runner import Cell
from odeopt.tools.tree import ravel

T1 = 5.0
DESCENT = 500
"""Steps of gradient descent with learning rate 0.01: target A."""


@dataclass(frozen=True)
class Configuration:
    """One point of a diagram: a family (its line) and its choices."""

    family: str
    steps: int
    solver: odeopt.solver.Solver
    adjoint: Any
    checkpoints: Any


class Targets(NamedTuple):
    """The gradient of the discrete map (A) and of the flow (B), flat."""

    descent: Tensor
    flow: Tensor


def configurations(sizes: Sizes) -> list[Configuration]:
    """Every adjoint and schedule, at several sizes."""
    found = [
        _descent("discrete, every state", odeopt.DiscreteAdjoint(), odeopt.Every(1)),
        _descent("first order", odeopt.FirstOrderAdjoint(), odeopt.Every(1)),
    ]
    for n in sizes.precision_steps:
        found += _of_size(n)
    return found


def _descent(family: str, adjoint: Any, checkpoints: Any) -> Configuration:
    return Configuration(f"GD, {family}", DESCENT, odeopt.Euler(), adjoint, checkpoints)


def _of_size(n: int) -> list[Configuration]:
    dormand_prince = odeopt.DormandPrince(rtol=1e-9, atol=1e-11)
    modified, fourth = (
        odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
        odeopt.ContinuousAdjoint(odeopt.RK4()),
    )
    tolerance = 10.0 / n**3
    adaptive = odeopt.Adaptive(rtol=tolerance, atol=tolerance * 1e-2)
    return [
        _descent("discrete, binomial", odeopt.DiscreteAdjoint(), odeopt.Binomial(n)),
        _descent("discrete, every k-th", odeopt.DiscreteAdjoint(), odeopt.Density(n)),
        _descent("truncated", odeopt.TruncatedAdjoint(n), odeopt.Every(1)),
        Configuration("RK4, discrete", n, odeopt.RK4(), odeopt.DiscreteAdjoint(), odeopt.Every(1)),
        Configuration("adaptive, discrete", 1, adaptive, odeopt.DiscreteAdjoint(), odeopt.Every(1)),
        Configuration("DP5, Euler", n, dormand_prince,
                      odeopt.ContinuousAdjoint(odeopt.Euler()), odeopt.Every(1)),
        Configuration("DP5, modified Euler", n, dormand_prince, modified, odeopt.Every(1)),
        Configuration("DP5, midpoint", n, dormand_prince,
                      odeopt.ContinuousAdjoint(odeopt.Midpoint()), odeopt.Every(1)),
        Configuration("DP5, modified Euler, graded", 512, dormand_prince, modified,
                      odeopt.Graded(n)),
        Configuration("DP5, RK4 + Hermite", n, dormand_prince, fourth, odeopt.Every(1)),
        Configuration("DP5, RK4 + Hermite, graded", 512, dormand_prince, fourth, odeopt.Graded(n)),
        Configuration("RK4, backsolve", n, odeopt.RK4(), odeopt.BacksolveAdjoint(),
                      odeopt.Every(1)),
    ]  # fmt: skip


def inputs(preset: Preset) -> list[Case]:
    """The problems of the diagrams: the paper's, and one on real input in a full run."""
    return [cosmixture_case(), *digits_cases()[: 1 if preset is Preset.PAPER else 0]]


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per problem and configuration."""
    found: list[Cell] = []
    for case in inputs(settings.preset):
        targets = cache(partial(_targets, case, settings.device))
        for index, one in enumerate(configurations(sizes)):
            compute = partial(_compute, case, one, targets, settings.device, sizes.repeats)
            found.append(Cell(f"precision {case.name} {index} {one.family}", compute))
    return found


def _call(case: Case, one: Configuration, device: torch.device) -> Callable[[], odeopt.Result]:
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(case.loss), one.solver, one.adjoint, one.checkpoints
    )
    task = case.task(0).to(device, torch.float64)
    params = {name: leaf.to(device) for name, leaf in case.parameters(0).items()}
    grid = odeopt.TimeGrid.uniform(T1, one.steps)
    return partial(opt.value_and_grad(case.loss), params, task.train, grid, task.validation)


def _targets(case: Case, device: torch.device) -> Targets:
    exact, every = odeopt.DiscreteAdjoint(), odeopt.Every(1)
    descent = Configuration("", DESCENT, odeopt.Euler(), exact, every)
    flow = Configuration("", 512, odeopt.RK4(), exact, every)
    return Targets(*(_flat(_call(case, one, device)()) for one in (descent, flow)))


def _flat(result: odeopt.Result) -> Tensor:
    return ravel(result.grads.params, "gradient")[0]


def _compute(
    case: Case,
    one: Configuration,
    targets: Callable[[], Targets],
    device: torch.device,
    repeats: int,
) -> dict[str, Any]:
    target = targets()
    call = _call(case, one, device)
    cell: dict[str, Any] = {"family": one.family, "case": case.name}
    begin = perf_counter()
    try:
        result = call()
    except odeopt.OdeoptError as error:
        return {**cell, "guard": f"{type(error).__name__}: {error}"}
    found, stats = _flat(result), result.stats
    return {
        **cell,
        "guard": "",
        **{f"error {name}": _error(found, t) for name, t in target._asdict().items()},
        **{f"cosine {name}": _cosine(found, t) for name, t in target._asdict().items()},
        "stored_bytes": stats.stored_bytes,
        "stored_states": stats.stored_states,
        "gradient_evaluations": stats.gradient_evaluations,
        "hvps": stats.hvps,
        **_time(perf_counter() - begin, call, _gradient(case, device), repeats, device),
    }


def _error(found: Tensor, target: Tensor) -> float:
    return ((found - target).norm() / target.norm()).item()


def _cosine(found: Tensor, target: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(found, target, dim=0).item()


def _gradient(case: Case, device: torch.device) -> Callable[[], object]:
    task = case.task(0).to(device, torch.float64)
    params = {name: leaf.to(device) for name, leaf in case.parameters(0).items()}
    return partial(torch.func.grad(case.loss), params, task.train)


def _time(
    first: float,
    call: Callable[[], object],
    unit: Callable[[], object],
    repeats: int,
    device: torch.device,
) -> dict[str, float]:
    """Median seconds, the first run included, and in units of one gradient measured beside."""
    seconds, units = [first], [_shortest(unit, device)]
    for _ in range(repeats - 1):
        seconds.append(_once(call, device))
        units.append(_shortest(unit, device))
    return {"seconds": median(seconds), "gradient_units": median(seconds) / median(units)}


def _shortest(unit: Callable[[], object], device: torch.device) -> float:
    return min(_once(unit, device) for _ in range(20))


def _once(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - begin
