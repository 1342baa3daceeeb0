"""Where nobody differentiates, nothing is kept, counted or made twice."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

import odeopt
from odeopt import Binomial, Every, Graded, TimeGrid
from odeopt.testing import relative_error, smooth_problem

CHOICES = {
    "every state": (odeopt.Euler, Every),
    "graded": (odeopt.Euler, lambda: Graded(10)),
    "adaptive, binomial": (lambda: odeopt.Adaptive(1e-6, 1e-8), lambda: Binomial(5)),
    "stabilised, density": (odeopt.StabilizedRK, lambda: odeopt.Density(3)),
    "dopri5": (odeopt.DormandPrince, Every),
    "budget": (odeopt.RK4, lambda: odeopt.MemoryBudget("1KiB")),
    "disk": (odeopt.Euler, lambda: Every(2, store=odeopt.Disk("unused", resume=True))),
}


def optimizer(name, problem, adjoint=None):
    solver, checkpoints = CHOICES[name]
    if adjoint is None and name == "dopri5":
        adjoint = odeopt.ContinuousAdjoint(odeopt.RK4())
    return odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), solver(), adjoint, checkpoints())


def forward_evaluations(name, problem, grid, tasks):
    """What the steps cost by themselves."""
    opt = optimizer(name, problem, odeopt.FirstOrderAdjoint())
    found = opt.value_and_grad(problem.loss, tasks=tasks)(
        problem.params, problem.batch, grid, problem.outer_batch
    )
    return found.stats.gradient_evaluations


@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("reason", ["no_grad", "nothing requires grad"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_solve_keeps_nothing_and_makes_each_step_once(name, reason, tasks, device, tmp_path):
    problem, grid = smooth_problem(device, tasks), TimeGrid.uniform(1.0, 30, observe=[0, 7, 30])
    params = problem.params
    if reason == "no_grad":
        params = {key: leaf.clone().requires_grad_() for key, leaf in params.items()}
    opt = optimizer(name, problem)
    with torch.set_grad_enabled(reason != "no_grad"):
        sol = opt.solve(params, problem.batch, grid, tasks=tasks is not None)
    plain = TimeGrid.uniform(1.0, 30) if name != "adaptive, binomial" else grid
    if name == "disk":
        assert sol.stats.gradient_evaluations == 30
    elif name not in ("stabilised, density", "adaptive, binomial", "dopri5"):
        spent = forward_evaluations(name, problem, plain, tasks is not None)
        assert sol.stats.gradient_evaluations == spent
    assert (sol.stats.stored_states, sol.stats.stored_bytes) == (0, 0)
    assert sol.stats.replayed_steps == 0
    assert not any(leaf.requires_grad for leaf in sol.params.values())


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "disk"])
def test_it_finds_what_a_differentiated_solve_finds(name, device):
    problem, grid = smooth_problem(device), TimeGrid.uniform(1.0, 30, observe=[0, 7, 30])
    opt = optimizer(name, problem)
    params = {key: leaf.clone().requires_grad_() for key, leaf in problem.params.items()}
    tracked = opt.solve(params, problem.batch, grid)
    plain = opt.solve(problem.params, problem.batch, grid)
    assert relative_error(plain.state, tracked.state) == 0
    assert relative_error(plain.observed, tracked.observed) == 0
    assert torch.equal(plain.status, tracked.status)


def test_it_works_under_vmap(device):
    problem = smooth_problem(device, tasks=3)
    opt = optimizer("every state", problem)
    grid = TimeGrid.from_lr(0.1, 5)
    found = vmap(lambda batch: opt.solve(problem.params, batch, grid).params)(problem.batch)
    expected = opt.solve(problem.params, problem.batch, grid, tasks=True).params
    assert relative_error(found, expected) < 1e-14


def test_a_solve_that_diverges_says_where(device):
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda params, batch: params.pow(4).sum()))
    params, grid = torch.full((2,), 10.0, device=device), TimeGrid.from_lr(1.0, 10)
    with pytest.raises(odeopt.DivergenceError, match="after step 4"):
        opt.solve(params, (), grid)
    tasks = torch.tensor([[10.0], [0.1]], device=device)
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(lambda p, batch: (batch * p).pow(4).sum()))
    sol = opt.solve(params[:1], tasks, grid, tasks=True, on_failure="skip")
    assert sol.status.tolist()[0] == odeopt.Status.STATE_NOT_FINITE


def kept_states(monkeypatch):
    """How many states are kept from now on."""
    from odeopt.engine.kept import Kept

    found, store = [], Kept.store
    monkeypatch.setattr(Kept, "store", lambda *args: found.append(1) or store(*args))
    return found


def test_methods_and_problems_evaluate_without_keeping(device, monkeypatch):
    problem = smooth_problem(device, tasks=3)
    batch = odeopt.TaskBatch(problem.batch, problem.outer_batch)
    method = odeopt.METHODS.get("maml")(problem.loss, checkpoints=Graded(4))
    kept = kept_states(monkeypatch)
    method.adapt(problem.params, problem.batch)
    method.evaluate(problem.params, batch)
    alone = smooth_problem(device)
    bilevel = odeopt.BilevelProblem(odeopt.Adam(alone.loss), alone.loss, TimeGrid.from_lr(0.1, 9))
    bilevel.value(alone.hparams, alone.params, alone.batch, alone.outer_batch)
    assert not kept


@pytest.mark.parametrize("field", [odeopt.GradientFlow, lambda loss: odeopt.HeavyBall(loss, 1.0)])
def test_a_tolerance_optimiser_evaluates_before_it_has_seen_a_gradient(field, device):
    problem = smooth_problem(device, tasks=3)
    grid, tol = TimeGrid.from_lr(0.05, 100, observe=[40]), 1e-3
    loop = odeopt.InnerLoop(odeopt.from_tolerance(field(problem.loss), tol), problem.loss, grid)
    found = loop.adapt(problem.params, problem.batch)
    fine = odeopt.ODEOptimizer(field(problem.loss), odeopt.RK4())
    exact = fine.solve(problem.params, problem.batch, grid, tasks=True).params
    moved = {key: leaf - problem.params[key] for key, leaf in exact.items()}
    error = {key: leaf - exact[key] for key, leaf in found.items()}
    zero = {key: torch.zeros_like(leaf) for key, leaf in found.items()}
    assert relative_error(error, zero) < tol * relative_error(moved, zero)
    values = loop.evaluate(problem.params, (problem.batch, problem.outer_batch))
    assert bool(torch.isfinite(values).all())
    params = {key: leaf.clone().requires_grad_() for key, leaf in problem.params.items()}
    with pytest.raises(odeopt.CompatibilityError, match="call value_and_grad"):
        loop.opt.solve(params, problem.batch, grid, tasks=True)
