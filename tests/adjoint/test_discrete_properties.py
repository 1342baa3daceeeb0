"""Properties of the exact adjoint: the same whatever is kept, linear, a transpose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.discrete import (
    EXACT,
    SCHEDULES,
    SOLVERS,
    cubic,
    inner,
    leaves,
    outer,
    problem,
    requiring_grad,
)
from torch.utils import _pytree as pytree

from odeopt import (
    Adaptive,
    Binomial,
    Every,
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive(1e-4, 1e-6)])
def test_bitwise_the_same_whatever_is_kept(solver, device):
    params, batch, outer_batch, hparams = problem([(3,), (2, 2)], device)
    batch = requiring_grad(batch)
    grid = TimeGrid.from_lr(torch.linspace(0.05, 0.3, 7, device=device))
    results = [
        ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule).value_and_grad(outer)(
            params, batch, grid, outer_batch, hparams
        )
        for schedule in SCHEDULES
    ]
    first = leaves(results[0])
    for schedule, res in zip(SCHEDULES[1:], results[1:], strict=True):
        pairs = zip(leaves(res), first, strict=True)
        assert all(torch.equal(x, y) for x, y in pairs), type(schedule).__name__


@given(a=st.floats(-3, 3), b=st.floats(-3, 3), method=st.sampled_from([*SOLVERS, "adaptive"]))
def test_linear_in_the_gradient_of_the_outer_loss(a, b, method, reference, device):
    params, batch, _, hparams = problem([(5,)], device)
    first, second = torch.randn(2, 5, device=device)
    solver = SOLVERS.get(method) or Adaptive(1e-4, 1e-6)
    opt = ODEOptimizer(GradientFlow(inner), solver, checkpoints=Binomial(2))

    def pulled(w):
        outer_loss = lambda params, w, hparams: w @ params["w0"]  # noqa: E731
        grid = TimeGrid.uniform(1.0, 6)
        grads = opt.value_and_grad(outer_loss)(params, batch, grid, w, hparams).grads
        return grads.params, grads.hparams, grads.dt

    combined = pytree.tree_map(lambda x, y: a * x + b * y, pulled(first), pulled(second))
    assert reference.relative(pulled(a * first + b * second), combined) <= EXACT


@pytest.mark.parametrize("method", SOLVERS)
def test_transposes_the_forward_tangent(method, reference, device):
    """<A' w, v> = <w, A v> with A v by forward mode through the unrolled loop."""
    params, batch, _, hparams = problem([(5,)], device)
    lr = torch.full((6,), 0.15, device=device)
    w = torch.randn(5, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=Binomial(2))
    outer_loss = lambda params, w, hparams: w @ params["w0"]  # noqa: E731
    res = opt.value_and_grad(outer_loss)(params, batch, TimeGrid.from_lr(lr), w, hparams)

    def loop(params, hparams, lr):
        velocity = reference.descent(inner, batch, hparams)
        return reference.states(method, velocity, params, lr)[-1]["w0"]

    inputs = (params, hparams, lr)
    direction = pytree.tree_map(torch.randn_like, inputs)
    forward = w @ torch.func.jvp(loop, inputs, direction)[1]
    grads = (res.grads.params, res.grads.hparams, res.grads.dt)
    products = pytree.tree_map(lambda g, v: (g * v).sum(), grads, direction)
    backward = sum(pytree.tree_leaves(products))
    assert abs(float(forward - backward)) <= 1e-13 * max(1.0, abs(float(forward)))


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(1)])
def test_one_step_on_a_cubic_takes_the_curvature_at_the_start(schedule, reference, device):
    u0 = torch.tensor([1.0, -0.7, 0.4], device=device)
    b, c = torch.tensor([[1.0, 2.0, -3.0], [0.5, 1.0, 2.0]], device=device)
    opt = ODEOptimizer(GradientFlow(cubic), checkpoints=schedule)
    outer_loss = lambda params, c: c @ params  # noqa: E731
    res = opt.value_and_grad(outer_loss)(u0, b, TimeGrid.from_lr(0.3, 1), c)
    assert reference.relative(res.grads.params, c * (1 - 0.3 * b * u0)) <= EXACT


@pytest.mark.parametrize("schedule", [Every(1), Every(2), Binomial(1), Binomial(2)])
def test_two_steps_on_a_cubic_take_the_curvatures_at_both_starts(schedule, reference, device):
    u0 = torch.tensor([1.0, -0.7, 0.4], device=device)
    b, c = torch.tensor([[1.0, 2.0, -3.0], [0.5, 1.0, 2.0]], device=device)
    opt = ODEOptimizer(GradientFlow(cubic), checkpoints=schedule)
    outer_loss = lambda params, c: c @ params  # noqa: E731
    res = opt.value_and_grad(outer_loss)(u0, b, TimeGrid.from_lr([0.3, 0.2]), c)
    u1 = u0 - 0.3 * b * u0**2 / 2
    expected = c * (1 - 0.2 * b * u1) * (1 - 0.3 * b * u0)
    slopes = torch.stack([-c * (1 - 0.2 * b * u1) * b * u0**2 / 2, -c * b * u1**2 / 2]).sum(-1)
    assert reference.relative(res.grads.params, expected) <= EXACT
    assert reference.relative(res.grads.dt, slopes) <= EXACT


@pytest.mark.parametrize("solver", [*SOLVERS.values(), Adaptive()])
def test_steps_of_zero_length_are_the_identity(solver, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    opt = ODEOptimizer(GradientFlow(inner), solver)
    grid = TimeGrid.from_lr(torch.zeros(3, device=device))
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    grads, value = torch.func.grad_and_value(outer, argnums=(0, 2))(params, outer_batch, hparams)
    assert torch.equal(res.value, value)
    assert torch.equal(res.grads.params["w0"], grads[0]["w0"])
    assert torch.equal(res.grads.hparams["scale"]["b"], grads[1]["scale"]["b"])
    assert not res.grads.hparams["shift"].any()


@pytest.mark.parametrize("schedule", [Every(1), Binomial(2)])
@pytest.mark.parametrize("solver", SOLVERS.values())
def test_a_step_of_zero_length_changes_nothing(solver, schedule, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    run = ODEOptimizer(GradientFlow(inner), solver, checkpoints=schedule).value_and_grad(outer)
    with_zeros = TimeGrid.from_lr(torch.tensor([0.0, 0.1, 0.0, 0.2, 0.0], device=device))
    without = TimeGrid.from_lr(torch.tensor([0.1, 0.2], device=device))
    found = run(params, batch, with_zeros, outer_batch, hparams)
    expected = run(params, batch, without, outer_batch, hparams)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.grads.params["w0"], expected.grads.params["w0"])
    assert torch.equal(found.grads.hparams["shift"], expected.grads.hparams["shift"])
    assert torch.equal(found.grads.dt[[1, 3]], expected.grads.dt)
