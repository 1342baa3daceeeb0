"""What the tests of safety share."""

from __future__ import annotations

import pytest
import torch

from odeopt import (
    TimeGrid,
)

GRID = TimeGrid.from_lr(0.1, steps=4)


def quadratic(params, batch, hparams=None):
    return 0.5 * (batch * params**2).sum()


def quartic(params, batch, hparams=None):
    return 0.25 * (batch * params**4).sum()


def total(params, batch, hparams=None):
    return params.sum()


def distance(params, batch, hparams=None):
    return ((params - 1.0) ** 2).sum()


def by_value_and_grad(
    opt, outer, params, batch, grid, outer_batch=None, hparams=None, tasks=False, **more
):
    outer_batch = batch if outer_batch is None else outer_batch
    call = opt.value_and_grad(outer, tasks=tasks)
    return call(params, batch, grid, outer_batch, hparams, **more).grads.params


def by_solve(opt, outer, params, batch, grid, outer_batch=None, hparams=None, tasks=False, **more):
    outer_batch = batch if outer_batch is None else outer_batch
    start = params
    if isinstance(params, torch.Tensor) and params.is_floating_point():
        start = params.clone().requires_grad_()
    sol = opt.solve(start, batch, grid, hparams=hparams, tasks=tasks, **more)
    rest = () if hparams is None else (hparams,)
    if not tasks:
        return torch.autograd.grad(outer(sol.params, outer_batch, *rest), start)[0]
    each = [outer(p, b, *rest) for p, b in zip(sol.params, outer_batch, strict=True)]
    return torch.autograd.grad(torch.stack(each).mean(), start)[0]


both = pytest.mark.parametrize("run", [by_solve, by_value_and_grad], ids=lambda f: f.__name__[3:])


def ones(device, *shape):
    return torch.ones(*(shape or (2,)), device=device)
