"""Reptile against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odeopt_plugins.reptile import Reptile

import odeopt


@given(
    seed=st.integers(0, 10_000), tasks=st.integers(1, 4), lr=st.floats(1e-3, 0.15),
    steps=st.integers(1, 6), learned=st.booleans(), use_validation=st.booleans(),
)  # fmt: skip
def test_reptile_is_the_way_to_the_mean_of_the_ends(
    seed, tasks, lr, steps, learned, use_validation, few, device
):
    params, batch, hparams = few.draw(seed, tasks, device)
    hparams = hparams if learned else None
    method = Reptile(few.loss, few.outer, lr=lr, steps=steps, use_validation=use_validation)
    res = method(params, batch, hparams)
    ends, values = [], []
    for task in range(tasks):
        train, validation = few.at(batch, task)

        def inner(u, train=train, validation=validation):
            value = few.loss(u, train, hparams)
            return (value + few.loss(u, validation, hparams)) / 2 if use_validation else value

        ends.append(few.descend(inner, few.requiring_grad(params), lr, steps))
        values.append(few.outer(ends[-1], validation, hparams))
    direction = {
        name: start - torch.stack([end[name] for end in ends]).mean(0)
        for name, start in params.items()
    }
    few.assert_equal(res, torch.stack(values), (direction,))
    assert not any(bool(leaf.any()) for leaf in (res.grads.hparams or {}).values())
    adapted = method.adapt(params, batch[0], hparams)
    train = few.at(batch[0], 0)
    alone = few.descend(
        lambda u: few.loss(u, train, hparams), few.requiring_grad(params), lr, steps
    )
    assert few.relative(few.at(adapted, 0), alone) <= 1e-12


def test_following_reptile_lowers_the_losses(few, device):
    params, batch, _ = few.draw(1, 4, device)
    method = Reptile(few.loss, lr=0.05, steps=3)
    before = method(params, batch).value
    for _ in range(20):
        direction = method(params, batch).grads.params
        params = {name: leaf - 0.5 * direction[name] for name, leaf in params.items()}
    assert method(params, batch).value < before


def test_no_horizon_of_each_tasks_own(few):
    with pytest.raises(odeopt.InputError, match="horizon"):
        Reptile(few.loss, horizon=odeopt.TaskHorizon())


@pytest.mark.parametrize("use_validation", [True, False])
def test_a_validation_loss_that_is_not_finite_is_refused(use_validation, few, device):
    params, (train, validation), _ = few.draw(1, 3, device)
    validation[1][2, 0] = torch.nan
    method = Reptile(few.loss, lr=0.05, use_validation=use_validation)
    with pytest.raises(odeopt.DivergenceError):
        method(params, (train, validation))
