"""The exact adjoint is autograd through the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.discrete import (
    EXACT,
    SCHEDULES,
    SOLVERS,
    assert_same_as_autograd,
    autograd,
    inner,
    outer,
    problem,
    requiring_grad,
    shapes,
)
from torch.utils import _pytree as pytree

from odeopt import (
    GradientFlow,
    ODEOptimizer,
    TimeGrid,
)


def unrolled(reference, method, params, batch, outer_batch, hparams, lr):
    """Value and gradients (params, batch, hparams, dt) through the unrolled loop."""

    def objective(params, batch, hparams, dts):
        velocity = reference.descent(inner, batch, hparams)
        return outer(reference.states(method, velocity, params, dts)[-1], outer_batch, hparams)

    return autograd(objective, params, batch, hparams, lr)


@given(
    shapes=shapes,
    container=st.sampled_from(["dict", "nested", "tuple"]),
    lr=st.sampled_from([0, 1, 2, 7]).flatmap(
        lambda n: st.lists(st.floats(0, 0.3), min_size=n, max_size=n)
    ),
    method=st.sampled_from(sorted(SOLVERS)),
    schedule=st.sampled_from(SCHEDULES),
    batch_requires_grad=st.booleans(),
    seed=st.integers(0, 100),
)
def test_equals_autograd(
    shapes, container, lr, method, schedule, batch_requires_grad, seed, reference, device
):
    params, batch, outer_batch, hparams = problem(shapes, device, seed, container)
    if batch_requires_grad:
        batch = requiring_grad(batch)
    lr = torch.tensor(lr, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=schedule)
    res = opt.value_and_grad(outer)(params, batch, TimeGrid.from_lr(lr), outer_batch, hparams)
    assert (res.grads.batch is not None) == batch_requires_grad
    expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr)
    assert_same_as_autograd(reference, res, expected)


@given(
    lr=st.lists(st.floats(0, 0.3), min_size=1, max_size=5),
    method=st.sampled_from(sorted(SOLVERS)),
    schedule=st.sampled_from(SCHEDULES),
)
def test_solve_backward_equals_autograd(lr, method, schedule, reference, device):
    params, batch, outer_batch, hparams = requiring_grad(problem([(3,), (2, 2)], device))
    lr = torch.tensor(lr, device=device, requires_grad=True)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method], checkpoints=schedule)
    sol = opt.solve(params, batch, TimeGrid.from_lr(lr), hparams)
    outer(sol.params, outer_batch, hparams).backward()
    found = pytree.tree_map(lambda leaf: leaf.grad, (params, batch, hparams, lr))
    _, expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr)
    assert reference.relative(found, expected) <= EXACT


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize("method", SOLVERS)
def test_one_learning_rate_for_all_steps(steps, method, reference, device):
    params, batch, outer_batch, hparams = problem([(4,)], device)
    lr = torch.tensor(0.1, device=device)
    opt = ODEOptimizer(GradientFlow(inner), SOLVERS[method])
    grid = TimeGrid.from_lr(lr, steps)
    res = opt.value_and_grad(outer)(params, batch, grid, outer_batch, hparams)
    expected = unrolled(reference, method, params, batch, outer_batch, hparams, lr.expand(steps))
    assert_same_as_autograd(reference, res, expected)
