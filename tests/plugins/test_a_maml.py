"""A-MAML against the flow; the released code against a transcription of it."""

from __future__ import annotations

from itertools import pairwise
from math import log2

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odeopt_plugins.a_maml import a_maml
from odeopt_plugins.a_maml_released import a_maml_released

import odeopt

TIGHT = odeopt.DormandPrince(rtol=1e-10, atol=1e-12)


def flow_gradient(few, params, batch, hparams, horizon):
    """By a fine grid and the exact adjoint."""
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(few.loss), odeopt.RK4(), odeopt.DiscreteAdjoint())
    grid = odeopt.TimeGrid.uniform(horizon, 100)
    return opt.value_and_grad(few.outer, tasks=True)(params, batch[0], grid, batch[1], hparams)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "learned"), [(0, False), (1, True)])
def test_the_error_is_of_second_order(seed, learned, few, device):
    params, batch, hparams = few.draw(seed, 2, device)
    hparams = hparams if learned else None
    reference = flow_gradient(few, params, batch, hparams, 0.5)
    errors = []
    for states in (16, 32, 64):
        method = a_maml(few.loss, few.outer, lr=0.1, steps=5, states=states, solver=TIGHT)
        res = method(params, batch, hparams)
        assert few.relative(res.values, reference.values) <= 1e-8
        found = (res.grads.params, res.grads.hparams)
        errors.append(few.relative(found, (reference.grads.params, reference.grads.hparams)))
    slopes = [log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(slope - 2) <= 0.15 for slope in slopes), (slopes, errors)


def test_as_many_states_as_steps_by_default(few, device):
    params, batch, _ = few.draw(0, 2, device)
    default = a_maml(few.loss, lr=0.05, steps=12, solver=TIGHT)(params, batch)
    states = a_maml(few.loss, lr=0.05, steps=12, states=12, solver=TIGHT)(params, batch)
    assert default.stats.stored_states == 12
    assert few.relative(default.grads.params, states.grads.params) == 0
    assert few.relative(a_maml(few.loss, lr=0.05, steps=12)(params, batch).value, states.value) < (
        1e-4
    )


def test_steps_that_are_too_long_are_refused(few, device):
    params, batch, _ = few.draw(0, 2, device)
    method = a_maml(few.loss, lr=1.0, steps=40, states=2)
    with pytest.raises(odeopt.StabilityError):
        method(params, batch)


def as_released(few, params, train, validation, lr, steps, reg):
    """What the released code computes for one task: (validation loss, gradient)."""
    from torchdiffeq import odeint

    names, shapes = list(params), [leaf.shape for leaf in params.values()]
    theta = torch.cat([leaf.reshape(-1) for leaf in params.values()])

    def tree(u):
        pieces = u.split([shape.numel() for shape in shapes])
        return {n: p.reshape(s) for n, p, s in zip(names, pieces, shapes, strict=True)}

    def regularised(loss, batch):
        return lambda u: loss(tree(u), batch) + reg / 2 * (u - theta).square().sum()

    inner, outer = regularised(few.loss, train), regularised(few.outer, validation)
    times = torch.linspace(0.0, lr * steps, steps + 1, device=theta.device)
    velocity = lambda t, u: -torch.autograd.functional.jacobian(inner, u)  # noqa: E731
    states = odeint(velocity, theta, times, method="rk4")
    lam = -torch.autograd.functional.jacobian(outer, states[-1])
    history = [lam]
    for t in reversed(range(steps + 1)):
        lam = lam - lr * torch.autograd.functional.vhp(inner, states[t], lam)[1]
        history.append(lam)
    integral = lr * torch.stack(history).sum(0)
    gradient = -(lam + reg * integral - reg * (theta - states[-1]))
    return outer(states[-1]), tree(gradient)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10_000), tasks=st.integers(1, 3), lr=st.floats(1e-3, 0.1),
    steps=st.integers(1, 8), reg=st.floats(0.1, 2),
)  # fmt: skip
def test_released_is_a_transcription_of_the_released_code(seed, tasks, lr, steps, reg, few, device):
    params, batch, _ = few.draw(seed, tasks, device)
    method = a_maml_released(few.loss, few.outer, lr=lr, steps=steps, strength=reg)
    res = method(params, batch)
    alone = [
        as_released(few, params, *few.at(batch, task), lr, steps, reg) for task in range(tasks)
    ]
    mean = {name: torch.stack([one[1][name] for one in alone]).mean(0) for name in params}
    few.assert_equal(res, torch.stack([one[0] for one in alone]), (mean,))


def test_released_is_of_first_order_only(few, device):
    """Against the exact gradient of the regularised flow."""
    params, batch, _ = few.draw(2, 2, device)

    def end(train, validation, params):
        def potential(u):
            return few.loss(u, train) + 0.5 * distance(u)

        def distance(u):
            return sum((u[k] - params[k]).square().sum() for k in u)

        u = few.descend(potential, params, 1.0 / 4000, 2000)
        return few.outer(u, validation) + 0.5 * distance(u)

    _, (expected,) = few.autograd(end, few.at(batch, slice(0, 1)), params)
    errors = [
        few.relative(
            a_maml_released(few.loss, few.outer, lr=0.5 / n, steps=n)(
                params, few.at(batch, slice(0, 1))
            ).grads.params,
            expected,
        )
        for n in (8, 16)
    ]
    assert 0.6 < log2(errors[0] / errors[1]) < 1.4
