"""Every registered update rule: the exact adjoint against autograd through the loop."""

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
from odeopt.testing.rules import unroll
from odeopt.tools import tree

LR = 0.001
STEPS = 50
SLOTS = (50, 10, 3)


def cells(settings: Settings) -> list[Cell]:
    """One cell per update rule."""
    return [Cell(f"rule {name}", partial(_compute, name, settings.device)) for name in names()]


def names() -> list[str]:
    """The registered update rules."""
    made = {name: odeopt.FIELDS.example(name)(lambda *args: None) for name in odeopt.FIELDS.names()}
    return [name for name, inner in made.items() if isinstance(inner, odeopt.UpdateRule)]


def _compute(name: str, device: torch.device) -> dict[str, Any]:
    case = cosmixture_case()
    rule = odeopt.FIELDS.example(name)(case.loss)
    task = case.task(0).to(device, torch.float64)
    params = {key: leaf.to(device) for key, leaf in case.parameters(0).items()}
    start = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    lrs = torch.full((STEPS,), LR, dtype=torch.float64, device=device)
    value = case.loss(unroll(rule, start, task.train, lrs), task.validation)
    expected = torch.autograd.grad(value, tree.tensors(start))
    found: dict[str, Any] = {}
    for slots in SLOTS:
        opt = odeopt.ODEOptimizer(rule, checkpoints=odeopt.Binomial(slots))
        res = opt.value_and_grad(case.loss)(
            params, task.train, odeopt.TimeGrid.from_lr(lrs), task.validation
        )
        error = relative_error(list(res.grads.params.values()), list(expected))
        found[str(slots)] = {"error": error, "replayed": res.stats.replayed_steps}
    return found


def section(results: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown."""
    rows: list[list[Any]] = []
    for name in names():
        cell = results[f"rule {name}"]
        rows.append([name, *(cell[str(n)][what] for n in SLOTS for what in ("error", "replayed"))])
    headers = [
        "update rule",
        *(f"{n} slots: {what}" for n in SLOTS for what in ("error", "replayed")),
    ]
    return f"{_INTRODUCTION}\n\n{markdown.table(headers, rows)}"


_INTRODUCTION = f"""## Every registered update rule

CosMixture, {STEPS} steps of {LR:g}: relative difference of the exact adjoint to autograd through
the unrolled loop (float64), and replayed steps."""
