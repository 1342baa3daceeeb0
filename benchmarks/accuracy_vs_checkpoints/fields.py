"""Every registered field: the exact and the continuous adjoint on one problem."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import odeopt
from benchmarks.accuracy_vs_checkpoints.cases import cosmixture_case
from benchmarks.harness import markdown
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from odeopt.testing import relative_error

T1 = 2.0
STATES = (8, 24)
FINE = 96


def cells(settings: Settings) -> list[Cell]:
    """One cell per field."""
    return [Cell(f"field {name}", partial(_compute, name, settings.device)) for name in names()]


def names() -> list[str]:
    """The registered fields; update rules have a table of their own."""
    made = {name: odeopt.FIELDS.example(name)(lambda *args: None) for name in odeopt.FIELDS.names()}
    return [name for name, inner in made.items() if isinstance(inner, odeopt.Field)]


def _compute(name: str, device: torch.device) -> dict[str, Any]:
    case = cosmixture_case()
    field = odeopt.FIELDS.example(name)(case.loss)
    task = case.task(0).to(device, torch.float64)
    params = {key: leaf.to(device) for key, leaf in case.parameters(0).items()}
    grid = odeopt.TimeGrid.uniform(T1, FINE)

    def gradient(adjoint: Any, checkpoints: Any) -> Any:
        opt = odeopt.ODEOptimizer(field, odeopt.RK4(), adjoint, checkpoints)
        call = opt.value_and_grad(case.loss)
        return call(params, task.train, grid, task.validation).grads.params

    exact = gradient(odeopt.DiscreteAdjoint(), odeopt.Every(1))
    return {
        f"{label} {n}": relative_error(gradient(adjoint, odeopt.Density(n)), exact)
        for n in STATES
        for label, adjoint in _ADJOINTS.items()
    }


_ADJOINTS = {
    "modified Euler": odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    "RK4 + Hermite": odeopt.ContinuousAdjoint(odeopt.RK4()),
}


def section(results: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown."""
    keys = list(results[f"field {names()[0]}"])
    rows = [[name, *(results[f"field {name}"][key] for key in keys)] for name in names()]
    headers = ["field", *(f"{key} states" for key in keys)]
    return f"{_INTRODUCTION}\n\n{markdown.table(headers, rows)}"


_INTRODUCTION = f"""## Every registered field

CosMixture, T = {T1:g}: error of continuous adjoints on few kept states against the exact adjoint of
RK4 with {FINE} steps."""
