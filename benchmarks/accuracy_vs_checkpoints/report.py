"""The whole suite: its cells, every registered field and update rule among them, and its report."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import odeopt
from benchmarks.accuracy_vs_checkpoints import precision, tables
from benchmarks.accuracy_vs_checkpoints.cases import SIZES, Sizes, cosmixture_case
from benchmarks.harness import markdown, outline
from benchmarks.harness.outline import Cell, Cells
from benchmarks.harness.registry import Settings
from odeopt.testing import relative_error
from odeopt.testing.rules import unroll
from odeopt.tools import tree

NAME = "accuracy-vs-checkpoints --only checkpoints"
REVISION = 1
"""Raised when what a cell computes changes, so that stored cells are computed anew."""


def run(settings: Settings) -> None:
    """Compute what is missing and write the report, the plots and `results.json`."""
    sizes = SIZES[settings.preset]
    chosen = _cells(settings, sizes)
    done = outline.compute(settings, NAME, REVISION, sizes, chosen, torch.float64)
    results = done.cells
    sections = [
        tables.section_4(results, sizes),
        tables.section_5(results, settings, sizes),
        tables.horizon_section(results, sizes),
        tables.input_section(results, settings, sizes),
        precision.section(results, settings, sizes),
        *_registered_sections(results),
    ]
    outline.write(settings, "Accuracy against checkpoints", done, sections)


def _cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    return [
        *tables.cells_4(settings, sizes),
        *tables.cells_5(settings, sizes),
        *_registered_cells(settings.device),
        *precision.cells(settings, sizes),
        *tables.input_cells(settings, sizes),
        *tables.horizon_cells(settings, sizes),
    ]


T1, STEPS = 2.0, 96
STATES = (8, 24)
"""Of fields."""

ADJOINTS = {
    "modified Euler": odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    "RK4 + Hermite": odeopt.ContinuousAdjoint(odeopt.RK4()),
}
LR, UPDATES = 0.001, 50
SLOTS = (50, 10, 3)
"""Of update rules."""


def _registered_cells(device: torch.device) -> list[Cell]:
    """One cell per field and per update rule."""
    fields, rules = _names(odeopt.Field), _names(odeopt.UpdateRule)
    return [
        *(Cell(f"field {name}", partial(_field, name, device)) for name in fields),
        *(Cell(f"rule {name}", partial(_rule, name, device)) for name in rules),
    ]


def _names(kind: type) -> list[str]:
    """Those that are registered of a kind."""
    inners = {n: odeopt.FIELDS.example(n)(lambda *args: None) for n in odeopt.FIELDS.names()}
    return [name for name, inner in inners.items() if isinstance(inner, kind)]


def _field(name: str, device: torch.device) -> dict[str, Any]:
    case = cosmixture_case()
    field = odeopt.FIELDS.example(name)(case.problem.loss)
    params, task = case.inputs(0, device)
    grid = odeopt.TimeGrid.uniform(T1, STEPS)

    def gradient(adjoint: Any, checkpoints: Any) -> Any:
        opt = odeopt.ODEOptimizer(field, odeopt.RK4(), adjoint, checkpoints)
        call = opt.value_and_grad(case.problem.loss)
        return call(params, task.train, grid, task.validation).grads.params

    exact = gradient(odeopt.DiscreteAdjoint(), odeopt.Every(1))
    return {
        f"{label} {n}": relative_error(gradient(adjoint, odeopt.Density(n)), exact)
        for n in STATES
        for label, adjoint in ADJOINTS.items()
    }


def _rule(name: str, device: torch.device) -> dict[str, Any]:
    case = cosmixture_case()
    loss = case.problem.loss
    rule = odeopt.FIELDS.example(name)(loss)
    params, task = case.inputs(0, device)
    start = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    lrs = torch.full((UPDATES,), LR, dtype=torch.float64, device=device)
    value = loss(unroll(rule, start, task.train, lrs), task.validation)
    expected = torch.autograd.grad(value, tree.tensors(start))
    cell: dict[str, Any] = {}
    for slots in SLOTS:
        opt = odeopt.ODEOptimizer(rule, checkpoints=odeopt.Binomial(slots))
        grid = odeopt.TimeGrid.from_lr(lrs)
        res = opt.value_and_grad(loss)(params, task.train, grid, task.validation)
        error = relative_error(list(res.grads.params.values()), list(expected))
        cell[str(slots)] = {"error": error, "replayed": res.stats.replayed_steps}
    return cell


def _registered_sections(results: Cells) -> list[str]:
    """Both tables."""
    fields, rules = _names(odeopt.Field), _names(odeopt.UpdateRule)
    keys = list(results[f"field {fields[0]}"])
    columns = [(n, what) for n in SLOTS for what in ("error", "replayed")]
    field_rows = [[name, *(results[f"field {name}"][key] for key in keys)] for name in fields]
    rule_rows = [
        [name, *(results[f"rule {name}"][str(n)][what] for n, what in columns)] for name in rules
    ]
    return [
        f"""## Every registered field

CosMixture, T = {T1:g}: error of continuous adjoints on few kept states against the exact adjoint of
RK4 with {STEPS} steps.

{markdown.table(["field", *(f"{key} states" for key in keys)], field_rows)}""",
        f"""## Every registered update rule

CosMixture, {UPDATES} steps of {LR:g}: relative difference of the exact adjoint to autograd through
the unrolled loop (float64), and replayed steps.

{markdown.table(["update rule", *(f"{n} slots: {what}" for n, what in columns)], rule_rows)}""",
    ]
