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
from odeopt.testing.problems import Quadratic, SmoothProblem, relative_error, smooth_problem
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
    found = call(
        problem.params,
        problem.batch,
        grid or TimeGrid.uniform(1.0, 12),
        problem.outer_batch,
        problem.hparams,
    )
    return found.grads.params, found.grads.hparams


def _check_minimiser(adjoint: Adjoint, device: torch.device | None) -> None:
    problem, strength = Quadratic.from_spectrum([0.5, 1.0, 2.0, 3.0]), 1.5
    field = RegularizedFlow(problem.loss, strength)
    params = torch.ones(4, dtype=torch.float64, device=device)
    outer = torch.linspace(-1, 1, 4, dtype=torch.float64, device=device)
    found = ODEOptimizer(field, adjoint=adjoint).value_and_grad(torch.dot)(
        params, problem.center.to(device), TimeGrid.from_lr(0.2, 120), outer
    )
    matrix = problem.matrix.to(device) + strength * torch.eye(4, dtype=torch.float64, device=device)
    expected = strength * torch.linalg.solve(matrix, outer)
    error = relative_error(found.grads.params, expected)
    assert error < 1e-8, f"the gradient of a quadratic's minimiser is off by {error:.1e}"


def _check_linearity(adjoint: Adjoint, problem: SmoothProblem) -> None:
    def twice(params: PyTree, batch: PyTree, hparams: PyTree) -> Tensor:
        return 2 * problem.loss(params, batch, hparams) + params["shift"].sum()

    def shift(params: PyTree, batch: PyTree, hparams: PyTree) -> Tensor:
        return params["shift"].sum()

    whole = _gradients(adjoint, problem, twice)
    parts = [_gradients(adjoint, problem), _gradients(adjoint, problem, shift)]
    total = tree.pytree.tree_map(lambda a, b: 2 * a + b, *parts)
    error = relative_error(whole, total)
    assert error < 1e-11, f"the adjoint is not linear in the outer loss: relative error {error:.1e}"


def _check_identity(adjoint: Adjoint, problem: SmoothProblem) -> None:
    expected = torch.func.grad(problem.loss)(problem.params, problem.outer_batch, problem.hparams)
    still = TimeGrid(torch.zeros(4, dtype=torch.float64))
    for grid in (TimeGrid.uniform(0.0, 0), still):
        found = _gradients(adjoint, problem, grid=grid)[0]
        error = relative_error(found, expected)
        assert error < 1e-13, f"without motion the adjoint is not the identity: {error:.1e}"


def _check_tasks(adjoint: Adjoint, device: torch.device | None) -> None:
    problem = smooth_problem(device, tasks=3)
    together = _gradients(adjoint, problem, tasks=True)
    alone: list[Any] = []
    for task in range(3):
        pick = lambda x, i=task: x[i]  # noqa: E731
        batches = [tree.map_tensors(pick, b) for b in (problem.batch, problem.outer_batch)]
        alone.append(
            _gradients(adjoint, problem._replace(batch=batches[0], outer_batch=batches[1]))
        )
    mean = tree.pytree.tree_map(lambda *gs: torch.stack(gs).mean(0), *alone)
    error = relative_error(together, mean)
    assert error < 1e-11, f"tasks are not independent: relative error {error:.1e}"


def _check_observed(adjoint: Adjoint, problem: SmoothProblem) -> None:
    def observing(params: PyTree, batch: PyTree, hparams: PyTree, observed: list[PyTree]) -> Tensor:
        losses = [problem.loss(state, batch, hparams) for state in observed]
        return torch.stack(losses).sum()

    grid = TimeGrid.uniform(1.0, 12, observe=[0, 12])
    both = _gradients(adjoint, problem, observing, grid)[0]
    start = torch.func.grad(problem.loss)(problem.params, problem.outer_batch, problem.hparams)
    end = _gradients(adjoint, problem)[0]
    total = tree.pytree.tree_map(torch.add, start, end)
    error = relative_error(both, total)
    assert error < 1e-11, f"observed states are not counted as they should: {error:.1e}"


def _check_replay(adjoint: Adjoint, problem: SmoothProblem) -> None:
    kept = _gradients(adjoint, problem, checkpoints=Every(1))
    replayed = _gradients(adjoint, problem, checkpoints=Binomial(3))
    same = all(
        torch.equal(a, b) for a, b in zip(tree.tensors(kept), tree.tensors(replayed), strict=True)
    )
    assert same, "the gradient depends on which states are kept and which are replayed"


def _check_convergence(adjoint: Adjoint, problem: SmoothProblem) -> None:
    reference = _gradients(adjoint, problem, grid=TimeGrid.uniform(1.0, 128))
    errors = [
        relative_error(_gradients(adjoint, problem, grid=TimeGrid.uniform(1.0, n)), reference)
        for n in (8, 32)
    ]
    assert errors[1] < 0.35 * errors[0], f"the error does not fall with the step: {errors}"
