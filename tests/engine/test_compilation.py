"""Compiled kernels: the numbers of eager execution, or an error."""

from __future__ import annotations

import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import odeopt
from odeopt.engine.compile import Trace
from odeopt.engine.compile.compiler import Compiler
from odeopt.testing import relative_error, smooth_problem

FIELDS = {
    "gradient-flow": lambda loss: odeopt.GradientFlow(loss, weight_decay=0.1),
    "regularized-flow": lambda loss: odeopt.RegularizedFlow(
        loss, lambda hparams: torch.exp(hparams["penalty"])
    ),
    "heavy-ball": lambda loss: odeopt.HeavyBall(loss, 0.7),
}
CHOICES = {
    "gd": (odeopt.Euler, odeopt.DiscreteAdjoint, lambda: odeopt.Every(1)),
    "rk4, replayed": (odeopt.RK4, odeopt.DiscreteAdjoint, lambda: odeopt.Binomial(3)),
    "midpoint, truncated": (odeopt.Midpoint, lambda: odeopt.TruncatedAdjoint(2), odeopt.Every),
    "adaptive": (lambda: odeopt.Adaptive(1e-5, 1e-7), odeopt.DiscreteAdjoint, odeopt.Every),
    "dopri5, rk4 on nodes": (
        lambda: odeopt.DormandPrince(1e-6, 1e-8),
        lambda: odeopt.ContinuousAdjoint(odeopt.RK4()),
        lambda: odeopt.Density(4),
    ),
    "heun on nodes": (
        odeopt.ModifiedEuler,
        lambda: odeopt.ContinuousAdjoint(odeopt.ModifiedEuler()),
        odeopt.Every,
    ),
}


def optimizer(field, choice, compile):
    solver, adjoint, checkpoints = CHOICES[choice]
    loss = smooth_problem().loss
    return odeopt.ODEOptimizer(
        FIELDS[field](loss), solver(), adjoint(), checkpoints(), compile=compile
    )


def gradients(opt, problem, tasks=False, grid=None):
    call = opt.value_and_grad(problem.loss, tasks=tasks)
    grid = grid or odeopt.TimeGrid.uniform(0.8, 6)
    return call(problem.params, problem.batch, grid, problem.outer_batch, problem.hparams)


def tensors(res):
    return [res.value, res.grads.params, res.grads.hparams, res.grads.dt]


@pytest.mark.slow
@settings(max_examples=6)
@given(
    field=st.sampled_from(sorted(FIELDS)), choice=st.sampled_from(sorted(CHOICES)),
    tasks=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_traced_kernels_give_the_same_numbers(device, field, choice, tasks):
    problem = smooth_problem(device, tasks)
    eager = gradients(optimizer(field, choice, None), problem, tasks is not None)
    opt = optimizer(field, choice, "trace")
    first = gradients(opt, problem, tasks is not None)
    again = gradients(opt, problem, tasks is not None)
    assert first.stats.compile_misses >= 2
    assert first.stats.compile_hits == 0
    assert again.stats.compile_hits == first.stats.compile_misses
    assert again.stats.compile_misses == 0
    for res in (first, again):
        assert relative_error(tensors(res), tensors(eager)) < 1e-12


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["gd", "heun on nodes"])
@pytest.mark.parametrize("tasks", [None, 3])
def test_inductor_gives_the_same_numbers(device, choice, tasks):
    problem = smooth_problem(device, tasks)
    eager = gradients(optimizer("gradient-flow", choice, None), problem, tasks is not None)
    opt = optimizer("gradient-flow", choice, "inductor")
    for _ in range(2):
        res = gradients(opt, problem, tasks is not None)
        assert relative_error(tensors(res), tensors(eager)) < 1e-12
    assert res.stats.compile_hits == 2
    assert res.stats.compile_seconds == 0


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_keeps_the_factors_of_sums(device):
    """Inductor drops them where a sum follows a matrix product, unless it is spelled out."""

    def loss(params, batch):
        product = params @ batch
        total = torch.add(product, params, alpha=0.3) + torch.add(params, product, alpha=0.2)
        total = total + torch.addmm(params, params, batch, alpha=0.7, beta=0.4)
        return torch.sub(total, batch, alpha=0.1).square().mean()

    params = torch.randn(4, 4, device=device)
    args = (params, torch.randn(4, 4, device=device), odeopt.TimeGrid.from_lr(0.1, 2), params.T)
    found = [
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=compile).value_and_grad(loss)(*args)
        for compile in (None, "inductor")
    ]
    assert relative_error(found[1].grads.params, found[0].grads.params) < 1e-12


def test_solve_is_differentiable_with_compiled_kernels(device):
    problem = smooth_problem(device)
    found = []
    for compile in (None, "trace"):
        params = {name: leaf.clone().requires_grad_() for name, leaf in problem.params.items()}
        opt = optimizer("gradient-flow", "gd", compile)
        sol = opt.solve(params, problem.batch, odeopt.TimeGrid.uniform(0.8, 6), problem.hparams)
        problem.loss(sol.params, problem.outer_batch, problem.hparams).backward()
        found.append({name: leaf.grad for name, leaf in params.items()})
    assert relative_error(found[1], found[0]) < 1e-13


def test_function_transforms_run_eagerly(device):
    problem = smooth_problem(device)
    opt = optimizer("gradient-flow", "gd", "trace")
    grid = odeopt.TimeGrid.uniform(0.8, 6)

    def outer(params):
        sol = opt.solve(params, problem.batch, grid, problem.hparams)
        return problem.loss(sol.params, problem.outer_batch, problem.hparams)

    found = torch.func.grad(outer)(problem.params)
    many = {name: torch.stack([leaf, leaf]) for name, leaf in problem.params.items()}
    batched = torch.func.vmap(torch.func.grad(outer))(many)
    expected = gradients(optimizer("gradient-flow", "gd", None), problem).grads.params
    assert relative_error(found, expected) < 1e-12
    assert relative_error({name: leaf[1] for name, leaf in batched.items()}, expected) < 1e-12


def test_new_shapes_dtypes_and_numbers_are_traced_anew(device):
    def loss(params, batch, hparams):
        return hparams["scale"] * (params - batch).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    grid = odeopt.TimeGrid.from_lr(0.1, 2)

    def misses(dtype=torch.float64, d=3, scale=1.0):
        params = torch.ones(d, dtype=dtype, device=device)
        batch = torch.zeros_like(params)
        res = opt.value_and_grad(loss)(params, batch, grid, batch, {"scale": scale})
        exact = 2 * scale * (1 - 0.2 * scale) ** 4 * params
        assert torch.allclose(res.grads.params, exact, rtol=1e-5)
        return res.stats.compile_misses

    assert misses() == 2
    assert misses() == 0
    assert misses(dtype=torch.float32) == 2
    assert misses(d=4) == 2
    assert misses(scale=2.0) == 2
    assert misses() == 0


def test_many_traces_warn():
    def loss(params, batch, hparams):
        return hparams["scale"] * params.square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    grid, params = odeopt.TimeGrid.from_lr(0.1, 1), torch.ones(2)
    call = opt.value_and_grad(loss)
    for k in range(7):
        call(params, params, grid, params, {"scale": float(k)})
    with pytest.warns(odeopt.OdeoptWarning, match="traced 8 times"):
        call(params, params, grid, params, {"scale": 7.0})


def test_what_cannot_be_traced_runs_eagerly_with_one_warning(device):
    def loss(params, batch):
        if (params.sum() > 1e9).item():
            return params.sum()
        return (params - batch).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    params = torch.ones(3, device=device)
    args = (params, 0 * params, odeopt.TimeGrid.from_lr(0.1, 2), 0 * params)
    with pytest.warns(odeopt.OdeoptWarning, match="cannot be traced") as caught:
        res = opt.value_and_grad(loss)(*args)
    assert len(caught) == 1
    assert torch.allclose(res.grads.params, 2 * 0.8**4 * params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.value_and_grad(loss)(*args)


def test_a_wrong_trace_raises(device):
    def loss(params, batch):
        factor = 1.0 if get_proxy_mode() is None else 1.01
        return factor * (params - batch).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    params = torch.ones(3, device=device)
    with pytest.raises(odeopt.CompilationError, match="gives other numbers than eager"):
        opt.value_and_grad(loss)(params, 0 * params, odeopt.TimeGrid.from_lr(0.1, 2), params)


@pytest.mark.parametrize("probes", [True, False])
@pytest.mark.parametrize("captured", ["number", "tensor", "without effect at the start"])
@pytest.mark.parametrize("rule", [odeopt.GradientFlow, odeopt.Adam])
def test_a_captured_value_that_changes_counts(device, captured, rule, probes):
    """Also one that has no effect where the solve begins, which no evaluation there would show."""
    scale = {"number": 1.0, "tensor": torch.ones((), device=device)}
    scale["without effect at the start"] = 0.0

    def loss(params, batch):
        if captured == "without effect at the start":
            return (params - batch).square().sum() + scale[captured] * (params - 1).pow(4).sum()
        return scale[captured] * (params - batch).square().sum()

    safety = odeopt.Safety(probe=probes)
    opt = odeopt.ODEOptimizer(rule(loss), compile="trace", safety=safety)
    params = torch.ones(3, device=device)
    args = (params, 0 * params, odeopt.TimeGrid.from_lr(0.1, 4), 0 * params)
    run = opt.value_and_grad(loss)
    before = run(*args)
    run(*args)
    scale[captured] = scale[captured] * 1.5 + 0.5
    found = run(*args)
    expected = odeopt.ODEOptimizer(rule(loss)).value_and_grad(loss)(*args)
    assert torch.allclose(found.grads.params, expected.grads.params, rtol=1e-13)
    assert not torch.allclose(found.grads.params, before.grads.params, rtol=1e-3)
    assert found.stats.compile_misses > 0
    assert run(*args).stats.compile_misses == 0


def test_an_adjoint_with_a_method_of_its_own_is_compiled_once(device):
    """Whatever number of stages the steps have that it goes back over."""
    compiler = Compiler("trace")
    stiffness = torch.tensor([1.0, 300.0], device=device)
    flow = odeopt.GradientFlow(lambda params, batch: (stiffness * params.square()).sum() / 2)
    opt = odeopt.ODEOptimizer(
        flow,
        odeopt.StabilizedRK(1e-3, 1e-5),
        odeopt.ContinuousAdjoint(odeopt.RK4()),
        compile=compiler,
    )
    call = opt.value_and_grad(lambda params, batch: params.sum())
    with suppress(odeopt.StabilityError):  # of RK4, for such long steps
        call(torch.ones(2, device=device), (), odeopt.TimeGrid.uniform(2.0, 1), ())
    names = [traced.name for traced in compiler._known]
    assert names.count("pull") == 1


def test_a_number_that_changes_without_an_effect_does_not_compile_again(device, monkeypatch):
    """Each kernel is recorded again, and found to be the same."""
    made, trace = [], Trace.compile
    monkeypatch.setattr(Trace, "compile", lambda *args: made.append(1) or trace(*args))
    counter = {"evaluations": 0}

    def loss(params, batch):
        counter["evaluations"] += 1
        return (params - batch).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    params = torch.ones(3, device=device)
    args = (params, 0 * params, odeopt.TimeGrid.from_lr(0.1, 4), 0 * params)
    opt.value_and_grad(loss)(*args)
    first = len(made)
    for _ in range(3):
        opt.value_and_grad(loss)(*args)
    assert len(made) == first > 0


@pytest.mark.parametrize("tasks", [False, True])
def test_a_captured_value_that_cannot_be_seen_raises_when_it_changes(device, tasks):
    rate = np.array([0.1])

    def loss(params, batch):
        return (params - batch).square().sum() + float(rate[0]) * params.square().sum()

    opt = odeopt.ODEOptimizer(odeopt.Adam(loss), compile="trace")
    params = torch.ones(3, device=device)
    batch = torch.zeros((2, 3) if tasks else 3, device=device)
    args = (params, batch, odeopt.TimeGrid.from_lr(0.1, 2), batch)
    for _ in range(2):
        opt.value_and_grad(loss, tasks=tasks)(*args)
    rate[0] = 10.0
    with pytest.raises(odeopt.CompilationError, match="not one of its arguments"):
        opt.value_and_grad(loss, tasks=tasks)(*args)


def test_equal_inputs_are_not_merged(device):
    """The batch is the parameters themselves: a trace that merged them would have no gradient."""
    params = torch.ones(3, device=device)

    def loss(params, batch):
        return (params - batch).pow(2).sum() + (params * batch).sum()

    grid = odeopt.TimeGrid.from_lr(0.1, 3)
    found = [
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=compile)
        .value_and_grad(loss)(params, params, grid, params)
        .grads.params
        for compile in (None, "trace")
    ]
    assert torch.equal(found[0], found[1])


def test_unknown_backends_are_refused():
    with pytest.raises(odeopt.UnknownNameError, match="one of inductor, inductor-cpu, trace"):
        odeopt.ODEOptimizer(odeopt.GradientFlow(lambda p, b: p.sum()), compile="jit")


def test_failing_tasks_are_still_found(device):
    def loss(params, batch):
        return (batch * params.square()).sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="trace")
    params = torch.ones(2, device=device)
    batch = torch.tensor([[0.1], [1e6]], device=device)
    grid = odeopt.TimeGrid.from_lr(1.0, 60)
    call = opt.value_and_grad(loss, tasks=True, on_failure="skip")
    res = call(params, batch, grid, batch)
    assert res.status.tolist() == [odeopt.Status.OK, odeopt.Status.STATE_NOT_FINITE]
    with pytest.raises(odeopt.DivergenceError, match="task 1"):
        opt.value_and_grad(loss, tasks=True)(params, batch, grid, batch)
