"""The conformance suite of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.grid import TimeGrid
from odeopt.inner.field import Field, GradientField
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.runge_kutta import RK4
from odeopt.testing.problems import SmoothProblem, relative_error, smooth_problem
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree

ROUNDING = 1e-13
"""What a readout may differ from the parameters by, as exp(log(x)) does from x."""


def check_field(make: Callable[[Loss], Field], device: torch.device | None = None) -> None:
    """Check a field made from a loss; raises AssertionError with what is wrong.

    Its readout at the start is the parameters, up to rounding; its velocity has the structure of
    the state, is deterministic and works under vmap; a gradient field is minus the gradient of its
    potential; the exact adjoint agrees with finite differences.

    Args:
        make: makes the field from `loss(params, batch)` or `loss(params, batch, hparams)`.
        device: where to compute.
    """
    problem = smooth_problem(device)
    field = make(problem.loss)
    for hparams in (None, problem.hparams):
        _check_readout(field, problem, hparams)
        _check_velocity(field, problem, hparams)
        _check_vmap(field, hparams, device)
        if isinstance(field, GradientField):
            _check_potential(field, problem, hparams)
    _check_gradient(field, problem)


def _evaluate(field: Field, problem: SmoothProblem, hparams: PyTree) -> tuple[PyTree, PyTree]:
    state, consts = field.init(problem.params, hparams)
    t = torch.tensor(0.3, dtype=torch.float64, device=problem.batch[0].device)
    return state, field.velocity(t, state, consts, hparams, problem.batch)


def _check_readout(field: Field, problem: SmoothProblem, hparams: PyTree) -> None:
    state, _ = field.init(problem.params, hparams)
    error = relative_error(field.readout(state), problem.params)
    assert error < ROUNDING, f"readout(init(params)) is not params: relative error {error:.1e}"


def _check_velocity(field: Field, problem: SmoothProblem, hparams: PyTree) -> None:
    state, first = _evaluate(field, problem, hparams)
    layout = tree.ravel(state, "state")[1]
    flat = layout.flatten(first, "velocity")
    again = layout.flatten(_evaluate(field, problem, hparams)[1], "velocity")
    assert bool(torch.isfinite(flat).all()), "the velocity is not finite"
    assert torch.equal(flat, again), "the velocity differs when it is evaluated again"


def _check_vmap(field: Field, hparams: PyTree, device: torch.device | None) -> None:
    problem = smooth_problem(device, tasks=3)
    state, consts = field.init(problem.params, hparams)
    t = torch.tensor(0.3, dtype=torch.float64, device=device)

    def velocity(batch: PyTree) -> PyTree:
        return field.velocity(t, state, consts, hparams, batch)

    together = torch.func.vmap(velocity)(problem.batch)
    for task in range(3):
        alone = velocity(tree.map_tensors(lambda x, i=task: x[i], problem.batch))
        mine = tree.map_tensors(lambda x, i=task: x[i], together)
        assert relative_error(mine, alone) < 1e-12, f"vmap changes the velocity of task {task}"


def _check_potential(field: GradientField, problem: SmoothProblem, hparams: PyTree) -> None:
    state, consts = field.init(problem.params, hparams)
    moved = tree.map_tensors(lambda x: x + 0.1, state)
    t = torch.tensor(0.3, dtype=torch.float64, device=problem.batch[0].device)

    def potential(y: PyTree) -> Tensor:
        return field.potential(t, y, consts, hparams, problem.batch)

    expected = tree.map_tensors(torch.neg, torch.func.grad(potential)(moved))
    found = field.velocity(t, moved, consts, hparams, problem.batch)
    error = relative_error(found, expected)
    assert error < 1e-12, f"the velocity is not -grad(potential): relative error {error:.1e}"


def _check_gradient(field: Field, problem: SmoothProblem) -> None:
    grid = TimeGrid.uniform(0.5, 4)
    opt = ODEOptimizer(field, RK4())

    def value(params: PyTree, hparams: PyTree) -> float:
        sol = opt.solve(params, problem.batch, grid, hparams)
        return problem.loss(sol.params, problem.outer_batch, hparams).item()

    result = opt.value_and_grad(problem.loss)(
        problem.params, problem.batch, grid, problem.outer_batch, problem.hparams
    )
    both: Any = (problem.params, problem.hparams)
    gradients: Any = (result.grads.params, result.grads.hparams)
    direction = tree.map_tensors(
        lambda x: torch.cos(torch.arange(x.numel())).reshape(x.shape), both
    )
    direction = tree.map_tensors(lambda x: x.to(problem.batch[0]), direction)
    eps = 1e-5
    ends = [value(*_shifted(both, direction, sign * eps)) for sign in (1.0, -1.0)]
    slope = sum(
        float((g * v).sum())
        for g, v in zip(tree.tensors(gradients), tree.tensors(direction), strict=True)
    )
    expected = (ends[0] - ends[1]) / (2 * eps)
    assert abs(slope - expected) < 1e-7 * (1 + abs(expected)), (
        f"the gradient along a direction is {slope:.9g}; finite differences give {expected:.9g}"
    )


def _shifted(point: PyTree, direction: PyTree, length: float) -> Any:
    return tree.pytree.tree_map(lambda x, v: x + length * v, point, direction)
