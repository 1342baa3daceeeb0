"""A random few-shot problem, and its inner loop unrolled by hand for autograd to go through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree


def outputs(params, x):
    return torch.tanh(x @ params["hidden"].T + params["bias"]) @ params["out"] + params["shift"]


def loss(params, batch, hparams=None):
    """Regression; hparams hold a learned penalty and a learned weight."""
    error = outputs(params, batch[0]) - batch[1]
    if hparams is None:
        return error.square().mean()
    penalty = sum(leaf.square().sum() for leaf in params.values())
    return hparams["weight"] * error.square().mean() + torch.exp(hparams["penalty"]) * penalty


def outer(params, batch, hparams=None):
    """Not the training loss."""
    value = torch.log(torch.cosh(outputs(params, batch[0]) - batch[1])).sum()
    return value if hparams is None else value * torch.cos(hparams["weight"])


def draw(seed, tasks, device):
    """(params, (train, validation), hparams)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(device)

    params = {"hidden": normal(3, 2), "bias": normal(3), "out": normal(3), "shift": normal(1)}
    train = (normal(tasks, 5, 2), normal(tasks, 5))
    validation = (normal(tasks, 4, 2), normal(tasks, 4))
    return params, (train, validation), {"weight": normal().abs() + 0.5, "penalty": normal() - 3}


def at(tree, index):
    return pytree.tree_map(lambda leaf: leaf[index], tree)


def gradient(loss, params, create_graph=True):
    """The gradient w.r.t. params as a tree."""
    flat, spec = pytree.tree_flatten(params)
    found = torch.autograd.grad(
        loss(params), flat, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return pytree.tree_unflatten(list(found), spec)


def requiring_grad(tree):
    return pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_(), tree)


def descend(loss, params, rates, steps):
    """Gradient descent with a number or a tree of rates; autograd can go through it."""
    rates = rates if isinstance(rates, dict) else dict.fromkeys(params, rates)
    for _ in range(steps):
        slopes = gradient(loss, params)
        params = {name: params[name] - rates[name] * slopes[name] for name in params}
    return params


def autograd(objective, task_batch, *inputs):
    """Per-task values of objective(train, validation, *inputs), and gradients of their mean."""
    inputs = requiring_grad(inputs)
    tasks = len(pytree.tree_leaves(task_batch)[0])
    values = torch.stack([objective(*at(task_batch, k), *inputs) for k in range(tasks)])
    return values.detach(), gradient(lambda _: values.mean(), inputs, create_graph=False)


def relative(found, expected):
    """The relative difference between two trees in the Euclidean norm."""
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    trees = [[x for x in pytree.tree_leaves(t) if x is not None] for t in (found, expected)]
    assert [x.shape for x in trees[0]] == [x.shape for x in trees[1]]
    flat = [torch.cat([leaf.detach().reshape(-1) for leaf in leaves]) for leaves in trees]
    return float((flat[0] - flat[1]).norm() / flat[1].norm().clamp(min=1e-8))


def assert_equal(res, values, grads, tolerance=1e-10):
    """A method's result against per-task values and gradients (params, hparams)."""
    assert relative(res.values, values) <= tolerance
    assert relative(res.value, values.mean()) <= tolerance
    assert relative(res.grads.params, grads[0]) <= tolerance
    if len(grads) > 1:
        assert relative(res.grads.hparams, grads[1]) <= tolerance


@pytest.fixture
def few():
    return SimpleNamespace(
        loss=loss, outer=outer, draw=draw, at=at, gradient=gradient, descend=descend,
        autograd=autograd, relative=relative, assert_equal=assert_equal, outputs=outputs,
        requiring_grad=requiring_grad,
    )  # fmt: skip
