"""Limits of gradients at their edges."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.inner.clipping import safe_sqrt


def test_the_root_of_zero_is_zero_and_flat(device):
    x = torch.tensor([0.0, 4.0], device=device, requires_grad=True)
    root = safe_sqrt(x)
    assert root.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(root.sum(), x)[0].tolist() == [0.0, 0.25]


def test_a_gradient_of_zero_stays_zero(device):
    rule = odeopt.SGD(
        lambda u, b: (u * b).square().sum(), gradient_transform=odeopt.clip_by_norm(1.0)
    )
    call = odeopt.ODEOptimizer(rule).value_and_grad(lambda u, b: u.sum())
    x = torch.ones(2, device=device)
    res = call(x, 0 * x, odeopt.TimeGrid.from_lr(0.1, 3), 0 * x)
    assert (float(res.value), res.grads.params.tolist()) == (2.0, [1.0, 1.0])


@pytest.mark.parametrize("wrong", [0, -1.0, True, "1", None, float("nan")])
def test_a_limit_is_a_positive_number(wrong):
    for make in (odeopt.clip_by_norm, odeopt.clip_by_value):
        with pytest.raises(odeopt.InputError, match="expected a positive number"):
            make(wrong)


@pytest.mark.parametrize("parts", [1, 3], ids=["only a scalar", "three parts"])
def test_a_loss_with_buffers_returns_two_parts(device, parts):
    def loss(params, batch, buffers):
        found = params.square().sum(), buffers, buffers
        return found[0] if parts == 1 else found

    x = torch.ones(2, device=device)
    rule = odeopt.SGD(loss, buffers={"seen": torch.zeros(1, device=device)})
    with pytest.raises(odeopt.InputError, match=r"expected \(scalar, new buffers\)"):
        odeopt.ODEOptimizer(rule).solve(x, x, odeopt.TimeGrid.from_lr(0.1, 2))
