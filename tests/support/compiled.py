"""Gradients with and without compilation."""

from __future__ import annotations

import odeopt
from odeopt.testing import relative_error, smooth_problem


def gradients(compile):
    problem = smooth_problem()
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), compile=compile)
    grid = odeopt.TimeGrid.uniform(0.8, 6)
    call = opt.value_and_grad(problem.loss)
    return call(problem.params, problem.batch, grid, problem.outer_batch).grads.params


def gap_to_eager(loss, params, batch, compile):
    """How far the gradient of tasks is from that without compilation."""
    grid = odeopt.TimeGrid.from_lr(0.1, 4)
    found = [
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=backend)
        .value_and_grad(loss, tasks=True)(params, batch, grid, batch)
        .grads.params
        for backend in (compile, None)
    ]
    return relative_error(*found)
