"""The conformance suite of fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from odeopt.grid import TimeGrid
from odeopt.inner.field import Field, GradientField
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.runge_kutta import RK4
from odeopt.testing.problems import SmoothProblem, check_close, check_vmap, number, smooth_problem
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
    _check_velocity(field, problem, None)
    _check_velocity(field, problem, problem.hparams)
    _check_gradient(field, problem)


def _check_velocity(field: Field, problem: SmoothProblem, hparams: PyTree) -> None:
    state, consts = field.init(problem.params, hparams)
    readout = field.readout(state)
    check_close(readout, problem.params, ROUNDING, "readout(init(params)) is not params")
    like = problem.batch[0]
    t, layout = number(0.3, like), tree.ravel(state, "state")[1]

    def velocity(batch: PyTree, y: PyTree = state) -> PyTree:
        return field.velocity(t, y, consts, hparams, batch)

    own, fresh = field.init(problem.params, hparams)
    slopes = velocity(problem.batch), field.velocity(t, own, fresh, hparams, problem.batch)
    first, again = (layout.flatten(slope, "velocity") for slope in slopes)
    assert bool(torch.isfinite(first).all()), "the velocity is not finite"
    assert torch.equal(first, again), "the velocity differs when it is evaluated again"
    check_vmap(velocity, smooth_problem(like.device, tasks=3).batch, 1e-12, "the velocity")
    if isinstance(field, GradientField):
        moved = tree.map_tensors(lambda x: x + 0.1, state)
        slope = torch.func.grad(lambda y: field.potential(t, y, consts, hparams, problem.batch))
        expected = tree.map_tensors(torch.neg, slope(moved))
        found = velocity(problem.batch, moved)
        check_close(found, expected, 1e-12, "the velocity is not -grad(potential)")


def _check_gradient(field: Field, problem: SmoothProblem) -> None:
    grid = TimeGrid.uniform(0.5, 4)
    opt = ODEOptimizer(field, RK4())
    both: Any = (problem.params, problem.hparams)
    direction = tree.map_tensors(
        lambda x: torch.cos(torch.arange(x.numel()).to(x)).reshape(x.shape), both
    )

    def value(length: float) -> float:
        """The outer loss from a point on a line through the parameters and hparams."""
        moved: Any = tree.pytree.tree_map(lambda x, v: x + length * v, both, direction)
        sol = opt.solve(moved[0], problem.batch, grid, moved[1])
        return problem.loss(sol.params, problem.outer_batch, moved[1]).item()

    grads = opt.value_and_grad(problem.loss)(
        problem.params, problem.batch, grid, problem.outer_batch, problem.hparams
    ).grads
    gradients = tree.tensors((grads.params, grads.hparams))
    pairs = zip(gradients, tree.tensors(direction), strict=True)
    slope = sum(float((g * v).sum()) for g, v in pairs)
    eps = 1e-5
    expected = (value(eps) - value(-eps)) / (2 * eps)
    assert abs(slope - expected) < 1e-7 * (1 + abs(expected)), (
        f"the gradient along a direction is {slope:.9g}; finite differences give {expected:.9g}"
    )
