"""The conformance suite of adjoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odeopt.adjoint.base import Adjoint
from odeopt.checkpoint.base import CheckpointSchedule
from odeopt.checkpoint.binomial import Binomial
from odeopt.checkpoint.uniform import Every
from odeopt.engine.safety import Safety
from odeopt.grid import TimeGrid
from odeopt.inner.flows import GradientFlow, RegularizedFlow
from odeopt.optimizer import ODEOptimizer
from odeopt.solver.runge_kutta import RK4
from odeopt.testing.problems import (
    Quadratic,
    SmoothProblem,
    check_close,
    relative_error,
    smooth_problem,
    task,
)
from odeopt.tools import tree
from odeopt.tools.types import PyTree


def check_adjoint(adjoint: Adjoint, device: torch.device | None = None) -> None:
    """Check an adjoint; raises AssertionError with what is wrong.

    Tasks are independent. If it is `path_dependent`, it is linear in the outer loss; it is the
    identity where nothing moves; observed states count; replay does not change it; and if it says
    that it is `consistent`, its error falls as the grid is refined. If it is not, it is right at
    the minimiser of a regularised quadratic.

    Args:
        adjoint: an instance.
        device: where to compute.
    """
    problem = smooth_problem(device)
    _check_tasks(adjoint, device)
    if not adjoint.path_dependent:
        _check_minimiser(adjoint, device)
        return
    _check_linearity(adjoint, problem)
    _check_identity(adjoint, problem)
    _check_observed(adjoint, problem)
    _check_replay(adjoint, problem)
    if adjoint.consistent:
        _check_convergence(adjoint, problem)


def _gradients(
    adjoint: Adjoint,
    problem: SmoothProblem,
    outer: Any = None,
    grid: TimeGrid | None = None,
    checkpoints: CheckpointSchedule | None = None,
    tasks: bool = False,
) -> Any:
    opt = ODEOptimizer(GradientFlow(problem.loss), RK4(), adjoint, checkpoints, Safety.off())
    call = opt.value_and_grad(outer or problem.loss, tasks=tasks)
    grid = grid or TimeGrid.uniform(1.0, 12)
    grads = call(problem.params, problem.batch, grid, problem.outer_batch, problem.hparams).grads
    return grads.params, grads.hparams


def _check_minimiser(adjoint: Adjoint, device: torch.device | None) -> None:
    problem, strength = Quadratic.from_spectrum([0.5, 1.0, 2.0, 3.0]), 1.5
    field = RegularizedFlow(problem.loss, strength)
    params = torch.ones(4, dtype=torch.float64, device=device)
    outer = torch.linspace(-1, 1, 4, dtype=torch.float64, device=device)
    grads = (
        ODEOptimizer(field, adjoint=adjoint)
        .value_and_grad(torch.dot)(
            params, problem.center.to(device), TimeGrid.from_lr(0.2, 120), outer
        )
        .grads
    )
    matrix = problem.matrix.to(device) + strength * torch.eye(4, dtype=torch.float64, device=device)
    expected = strength * torch.linalg.solve(matrix, outer)
    check_close(grads.params, expected, 1e-8, "the gradient of a quadratic's minimiser is wrong")


def _check_linearity(adjoint: Adjoint, problem: SmoothProblem) -> None:
    def twice(params: PyTree, batch: PyTree, hparams: PyTree) -> Tensor:
        return 2 * problem.loss(params, batch, hparams) + params["shift"].sum()

    def shift(params: PyTree, batch: PyTree, hparams: PyTree) -> Tensor:
        return params["shift"].sum()

    whole = _gradients(adjoint, problem, twice)
    parts = [_gradients(adjoint, problem), _gradients(adjoint, problem, shift)]
    total = tree.pytree.tree_map(lambda a, b: 2 * a + b, *parts)
    check_close(whole, total, 1e-11, "the adjoint is not linear in the outer loss")


def _check_identity(adjoint: Adjoint, problem: SmoothProblem) -> None:
    expected = torch.func.grad(problem.loss)(problem.params, problem.outer_batch, problem.hparams)
    still = TimeGrid(torch.zeros(4, dtype=torch.float64))
    for grid in (TimeGrid.uniform(0.0, 0), still):
        found = _gradients(adjoint, problem, grid=grid)[0]
        check_close(found, expected, 1e-13, "without motion the adjoint is not the identity")


def _check_tasks(adjoint: Adjoint, device: torch.device | None) -> None:
    problem = smooth_problem(device, tasks=3)
    together = _gradients(adjoint, problem, tasks=True)
    alone: list[Any] = []
    for index in range(3):
        batch, outer_batch = task((problem.batch, problem.outer_batch), index)
        own = problem._replace(batch=batch, outer_batch=outer_batch)
        alone.append(_gradients(adjoint, own))
    mean = tree.pytree.tree_map(lambda *gs: torch.stack(gs).mean(0), *alone)
    check_close(together, mean, 1e-11, "tasks are not independent")


def _check_observed(adjoint: Adjoint, problem: SmoothProblem) -> None:
    def observing(params: PyTree, batch: PyTree, hparams: PyTree, observed: list[PyTree]) -> Tensor:
        return torch.stack([problem.loss(state, batch, hparams) for state in observed]).sum()

    grid = TimeGrid.uniform(1.0, 12, observe=[0, 12])
    both = _gradients(adjoint, problem, observing, grid)[0]
    start = torch.func.grad(problem.loss)(problem.params, problem.outer_batch, problem.hparams)
    end = _gradients(adjoint, problem)[0]
    total = tree.pytree.tree_map(torch.add, start, end)
    check_close(both, total, 1e-11, "observed states are not counted as they should")


def _check_replay(adjoint: Adjoint, problem: SmoothProblem) -> None:
    kept = _gradients(adjoint, problem, checkpoints=Every(1))
    replayed = _gradients(adjoint, problem, checkpoints=Binomial(3))
    pairs = zip(tree.tensors(kept), tree.tensors(replayed), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), (
        "the gradient depends on which states are kept and which are replayed"
    )


def _check_convergence(adjoint: Adjoint, problem: SmoothProblem) -> None:
    reference = _gradients(adjoint, problem, grid=TimeGrid.uniform(1.0, 128))
    errors = [
        relative_error(_gradients(adjoint, problem, grid=TimeGrid.uniform(1.0, n)), reference)
        for n in (8, 32)
    ]
    assert errors[1] < 0.35 * errors[0], f"the error does not fall with the step: {errors}"
