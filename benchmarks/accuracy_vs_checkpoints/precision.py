"""Work-precision: error against memory, evaluations and seconds."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from operator import itemgetter
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.accuracy_vs_checkpoints.cases import Case, Sizes, cosmixture_case, digits_cases
from benchmarks.comparison import cosine
from benchmarks.harness import markdown, plots
from benchmarks.harness.costs import once
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Preset, Settings
from odeopt.testing import relative_error
from odeopt.tools import tree

T1 = 5.0
DESCENT = 500
"""Steps of gradient descent with learning rate 0.01: target A."""

TARGETS = {
    "descent": f"(A) the gradient of {DESCENT} steps of gradient descent",
    "flow": "(B) the gradient of the flow",
}
METRICS = {"error": "relative L2 error", "cosine": "1 - cosine"}
AXES = {
    "stored_bytes": ("kept states, bytes", ["stored_bytes"]),
    "work": ("gradient evaluations + Hessian-vector products", ["gradient_evaluations", "hvps"]),
    "gradient_units": ("time, in gradient evaluations", ["gradient_units"]),
}
"""Their labels, and what is added up."""


@dataclass(frozen=True)
class Configuration:
    """One point of a diagram: a family (its line) and its choices."""

    family: str
    steps: int
    solver: odeopt.solver.Solver
    adjoint: Any
    checkpoints: Any


def configurations(sizes: Sizes) -> list[Configuration]:
    """Every adjoint and schedule, at several sizes."""
    return [
        _descent("discrete, every state", odeopt.DiscreteAdjoint(), odeopt.Every(1)),
        _descent("first order", odeopt.FirstOrderAdjoint(), odeopt.Every(1)),
        *(one for n in sizes.precision_steps for one in _of_size(n)),
    ]


def _descent(family: str, adjoint: Any, checkpoints: Any) -> Configuration:
    return Configuration(f"GD, {family}", DESCENT, odeopt.Euler(), adjoint, checkpoints)


def _of_size(n: int) -> list[Configuration]:
    exact, every, rk4 = odeopt.DiscreteAdjoint(), odeopt.Every(1), odeopt.RK4()
    dormand_prince = odeopt.DormandPrince(rtol=1e-9, atol=1e-11)
    euler, modified, midpoint, fourth = (
        odeopt.ContinuousAdjoint(solver)
        for solver in (odeopt.Euler(), odeopt.ModifiedEuler(), odeopt.Midpoint(), rk4)
    )
    tolerance = 10.0 / n**3
    adaptive = odeopt.Adaptive(rtol=tolerance, atol=tolerance * 1e-2)
    graded = odeopt.Graded(n)
    return [
        _descent("discrete, binomial", exact, odeopt.Binomial(n)),
        _descent("discrete, every k-th", exact, odeopt.Density(n)),
        _descent("truncated", odeopt.TruncatedAdjoint(n), every),
        Configuration("RK4, discrete", n, rk4, exact, every),
        Configuration("adaptive, discrete", 1, adaptive, exact, every),
        Configuration("DP5, Euler", n, dormand_prince, euler, every),
        Configuration("DP5, modified Euler", n, dormand_prince, modified, every),
        Configuration("DP5, midpoint", n, dormand_prince, midpoint, every),
        Configuration("DP5, modified Euler, graded", 512, dormand_prince, modified, graded),
        Configuration("DP5, RK4 + Hermite", n, dormand_prince, fourth, every),
        Configuration("DP5, RK4 + Hermite, graded", 512, dormand_prince, fourth, graded),
        Configuration("RK4, backsolve", n, rk4, odeopt.BacksolveAdjoint(), every),
    ]


def inputs(preset: Preset) -> list[Case]:
    """The problems of the diagrams: the paper's, and one on real input in a full run."""
    return [cosmixture_case(), *digits_cases()[: 1 if preset is Preset.PAPER else 0]]


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per problem and configuration."""
    chosen: list[Cell] = []
    for case in inputs(settings.preset):
        targets = cache(partial(_targets, case, settings.device))
        for index, one in enumerate(configurations(sizes)):
            compute = partial(_compute, case, one, targets, settings.device, sizes.repeats)
            chosen.append(Cell(f"precision {case.name} {index} {one.family}", compute))
    return chosen


def _call(case: Case, one: Configuration, device: torch.device) -> Callable[[], odeopt.Result]:
    loss = case.problem.loss
    flow = odeopt.GradientFlow(loss)
    opt = odeopt.ODEOptimizer(flow, one.solver, one.adjoint, one.checkpoints)
    params, task = case.inputs(0, device)
    grid = odeopt.TimeGrid.uniform(T1, one.steps)
    return partial(opt.value_and_grad(loss), params, task.train, grid, task.validation)


def _targets(case: Case, device: torch.device) -> dict[str, Tensor]:
    """The gradient of the discrete map (A) and of the flow (B), flat."""
    adjoint, every = odeopt.DiscreteAdjoint(), odeopt.Every(1)
    exact = {
        "descent": _descent("", adjoint, every),
        "flow": Configuration("", 512, odeopt.RK4(), adjoint, every),
    }
    return {name: tree.flat(_call(case, one, device)().grads.params) for name, one in exact.items()}


def _compute(
    case: Case, one: Configuration, targets: Callable[[], dict[str, Tensor]], device: torch.device,
    repeats: int,
) -> dict[str, Any]:  # fmt: skip
    aims, call = targets(), _call(case, one, device)
    cell: dict[str, Any] = {"family": one.family, "case": case.name}
    begin = perf_counter()
    try:
        result = call()
    except odeopt.OdeoptError as error:
        return {**cell, "guard": f"{type(error).__name__}: {error}"}
    gradient, stats = tree.flat(result.grads.params), result.stats
    return {
        **cell,
        "guard": "",
        **{f"error {name}": relative_error(gradient, target) for name, target in aims.items()},
        **{f"cosine {name}": cosine(gradient, target) for name, target in aims.items()},
        "stored_bytes": stats.stored_bytes,
        "stored_states": stats.stored_states,
        "gradient_evaluations": stats.gradient_evaluations,
        "hvps": stats.hvps,
        **_time(perf_counter() - begin, call, case, repeats, device),
    }


def _time(
    first: float, call: Callable[[], object], case: Case, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds, the first run included, and in units of one gradient measured beside."""
    params, task = case.inputs(0, device)
    gradient = partial(torch.func.grad(case.problem.loss), params, task.train)

    def unit() -> float:
        return min(once(gradient, device) for _ in range(20))

    seconds, units = [first], [unit()]
    for _ in range(repeats - 1):
        seconds.append(once(call, device))
        units.append(unit())
    return {"seconds": median(seconds), "gradient_units": median(seconds) / median(units)}


def section(results: Cells, settings: Settings, sizes: Sizes) -> str:
    """Plots and tables for each problem and target."""
    parts = [_INTRODUCTION]
    families = [one.family for one in configurations(sizes)]
    for case in inputs(settings.preset):
        own = [results[f"precision {case.name} {i} {name}"] for i, name in enumerate(families)]
        for target, words in TARGETS.items():
            parts.append(f"### {case.name}: {words}")
            for (axis, (label, _)), metric in product(AXES.items(), METRICS):
                file = _plot(own, settings, case.name, target, axis, metric)
                parts.append(f"![{METRICS[metric]} against {label}]({file})")
        rows = [([cell["family"]], "unstable" if cell["guard"] else cell) for cell in own]
        parts.append(markdown.described(["configuration"], _COLUMNS, rows))
    return "\n\n".join(parts)


def _plot(
    cells: list[dict[str, Any]], settings: Settings, case: str, target: str, axis: str, metric: str
) -> str:
    """Draws one diagram; the name of the file."""
    lines: list[plots.Series] = []
    for family in dict.fromkeys(cell["family"] for cell in cells):
        own = [cell for cell in cells if cell["family"] == family and not cell["guard"]]
        x = [max(float(sum(cell[count] for count in AXES[axis][1])), 1.0) for cell in own]
        y = [cell[f"{metric} {target}"] for cell in own]
        lines.append(plots.Series(family, x, [1 - v for v in y] if metric == "cosine" else y))
    labels = plots.Labels(f"{case}, T = {T1:g}: {TARGETS[target]}", AXES[axis][0], METRICS[metric])
    parts = (re.sub(r"[^a-z0-9]+", "-", p.lower()).strip("-") for p in (case, target, axis, metric))
    file = "-".join(["precision", *parts]) + ".png"
    plots.loglog(settings.store.directory / file, labels, lines)
    return file


_COLUMNS: list[markdown.Column] = [
    ("error A", itemgetter("error descent")), ("cosine A", "{cosine descent:.6f}"),
    ("error B", itemgetter("error flow")), ("cosine B", "{cosine flow:.6f}"),
    ("states", "{stored_states}"), ("bytes", "{stored_bytes}"),
    ("gradients", "{gradient_evaluations}"), ("HVPs", "{hvps}"),
    ("seconds", "{seconds:.2f}"), ("in gradients", "{gradient_units:.0f}"),
]  # fmt: skip

_INTRODUCTION = f"""## Work and precision

One task, T = {T1:g}, float64. Two targets that must not be mixed: (A) the gradient of the discrete
map, {DESCENT} steps of gradient descent with learning rate {T1 / DESCENT:g}, and (B) the gradient
of the flow that gradient descent approximates. Exact adjoints of gradient descent have no error
to A whatever they keep; they are as far from B as gradient descent itself is from the flow.
Time is the median of the repeats, also in units of one gradient evaluation measured in between;
the counts of gradients and Hessian-vector products do not depend on the machine."""
