"""Table 4: a linear equation with a closed form, published, reproduced and ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.accuracy_vs_checkpoints.sizes import Sizes
from benchmarks.harness import markdown
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems import closed_form, published

STARTS = 20
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def cells(settings: Settings, sizes: Sizes) -> list[Cell]:
    """One cell per horizon and number of states."""
    return [
        Cell(f"table4 T={t1} N={states}", partial(_compute, t1, states, settings.device))
        for t1 in published.TABLE_4
        for states in sizes.table_4_states
    ]


def _compute(t1: float, states: int, device: torch.device) -> dict[str, Any]:
    return {name: _errors(t1, states, dtype, device) for name, dtype in DTYPES.items()}


def _errors(t1: float, states: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Mean and deviation over the starts of the relative error of each column."""
    y0 = closed_form.initial_states(STARTS, seed=0).to(device)
    exact = closed_form.gradient(torch.tensor(t1, dtype=torch.float64), y0)
    grid = odeopt.TimeGrid.uniform(t1, states - 1)
    found = {
        "modified Euler": _adjoint(y0, t1, grid, dtype),
        "midpoint": _midpoint(y0, t1, grid, dtype),
        "autodiff": _autodiff(y0, grid, dtype),
    }
    relative = {name: (g.double() - exact).abs() / exact.abs() for name, g in found.items()}
    return {name: [e.mean().item(), e.std(correction=0).item()] for name, e in relative.items()}


def _velocity(t: Tensor, state: Tensor, consts: Any, hparams: Any, batch: Any) -> Tensor:
    return closed_form.velocity(t, state)


def _outer(y: Tensor, batch: Tensor) -> Tensor:
    return closed_form.loss(y).sum()


def _adjoint(y0: Tensor, t1: float, grid: odeopt.TimeGrid, dtype: torch.dtype) -> Tensor:
    """The paper's text: Dormand-Prince forward, modified Euler backward on N states."""
    opt = odeopt.ODEOptimizer(
        _velocity,
        odeopt.DormandPrince(rtol=1e-6, atol=1e-7)
        if dtype is torch.float32
        else odeopt.DormandPrince(rtol=1e-11, atol=1e-13),
        odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
    )
    empty = torch.zeros(0, dtype=dtype, device=y0.device)
    return opt.value_and_grad(_outer)(y0.to(dtype), empty, grid, empty).grads.params


def _midpoint(y0: Tensor, t1: float, grid: odeopt.TimeGrid, dtype: torch.dtype) -> Tensor:
    """The transposed midpoint rule, from the exact gradient at T: the printed adjoint column."""
    end = closed_form.solution(torch.tensor(t1, dtype=torch.float64), y0)
    lam = (6 * (end - 3) ** 5).to(dtype)
    opt = odeopt.ODEOptimizer(_velocity, odeopt.Midpoint())
    call = opt.value_and_grad(lambda y, seed: (y * seed).sum())
    empty = torch.zeros(0, dtype=dtype, device=y0.device)
    return call(y0.to(dtype), empty, grid, lam).grads.params


def _autodiff(y0: Tensor, grid: odeopt.TimeGrid, dtype: torch.dtype) -> Tensor:
    """Differentiation through modified Euler forward: the exact discrete adjoint."""
    opt = odeopt.ODEOptimizer(_velocity, odeopt.ModifiedEuler())
    empty = torch.zeros(0, dtype=dtype, device=y0.device)
    return opt.value_and_grad(_outer)(y0.to(dtype), empty, grid, empty).grads.params


def section(results: dict[str, dict[str, Any]], sizes: Sizes) -> str:
    """The table as Markdown."""
    parts = [_INTRODUCTION]
    for t1, columns in published.TABLE_4.items():
        adjoint = columns[published.TABLE_4_ADJOINT[t1]]
        other = columns["adjoint" if published.TABLE_4_ADJOINT[t1] == "autodiff" else "autodiff"]
        rows: list[list[Any]] = []
        for states in sizes.table_4_states:
            place = published.TABLE_4_STATES.index(states)
            cell = results[f"table4 T={t1} N={states}"]
            rows.append(
                [states, _show(adjoint[place]), *(_show(cell[d]["midpoint"]) for d in DTYPES),
                 *(_show(cell[d]["modified Euler"]) for d in DTYPES),
                 _show(other[place]), *(_show(cell[d]["autodiff"]) for d in DTYPES)]
            )  # fmt: skip
        parts.append(f"\n**T = {t1}**\n\n{markdown.table(_HEADERS, rows)}")
    return "\n".join(parts)


def _show(entry: Any) -> str:
    mean, deviation = entry
    return markdown.with_spread(mean, deviation)


_HEADERS = [
    "states", "published adjoint", "midpoint f32", "midpoint f64", "mod. Euler f32",
    "mod. Euler f64", "published autodiff", "autodiff f32", "autodiff f64",
]  # fmt: skip

_INTRODUCTION = """## Table 4: a linear equation with a closed form

$y' = -2t^3 - 2ty$ (the paper prints x for t), $L = (y - 3)^6$, 20 starts from U(0, 1) (the paper
does not say which), N states = N - 1 steps; relative error of $dL/dy_0$, mean ± deviation.

*Published adjoint* is the deterministic column: "Adjoint" at T = 1 and 2, but the one headed
"Autodiff" at T = 0.1 and 0.5, where the two must have been swapped (the equation is linear, so
the adjoint's relative error cannot depend on the start). *Midpoint* reproduces it: the transposed
midpoint rule with N - 1 steps, not the modified Euler method of the text, whose own column stands
beside. *Autodiff* is the exact gradient of modified Euler forward; the published figures for it
depend on the unknown starts. The floor of the published figures, about 1e-6, is that of single
precision. The equation is blind to errors in the states: its Jacobian does not depend on y."""
