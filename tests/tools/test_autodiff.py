"""Plain autograd and torch.func give the same derivatives, and each is used where it can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.params import slow_but

import odeopt
from odeopt.testing import smooth_problem
from odeopt.tools import autodiff, tree
from odeopt.tools.autodiff import gradient, transforms_only, vjp

PIECES = {
    "product": lambda x, y: (x * y).sum(),
    "softmax": lambda x, y: (torch.softmax(x, -1) * y).sum(),
    "norm": lambda x, y: (x - y).square().sum().sqrt(),
    "tanh": lambda x, y: torch.tanh(x @ y).square(),
    "of x alone": lambda x, y: x.exp().sum(),
    "constant": lambda x, y: torch.ones(()),
}
pieces = st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=3)


def functions(names):
    """A scalar function of a tree, made of pieces."""
    return lambda at: sum(PIECES[name](at["x"], at["y"]) for name in names)


def point(seed):
    x, y = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)).unbind()
    return {"x": x, "y": y}


def func_only(monkeypatch):
    monkeypatch.setattr(autodiff, "can_record", lambda leaves: False)


@given(names=pieces, seed=st.integers(0, 1000))
def test_gradients_are_those_of_torch_func(names, seed):
    expected = torch.func.grad(functions(names))(point(seed))
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            found = gradient(functions(names), point(seed))
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
        assert not any(leaf.requires_grad for leaf in found.values())


@given(names=pieces, seed=st.integers(0, 1000))
def test_products_with_the_hessian_too_as_often_as_they_are_asked_for(names, seed):
    def slope(at):
        return torch.cat(list(gradient(functions(names), at).values()))

    cotangents = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed))
    value, pullback = vjp(slope, point(seed))
    expected, reference = torch.func.vjp(slope, point(seed))
    assert not value.requires_grad
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=1e-15)
    for cotangent in cotangents:
        torch.testing.assert_close(
            pullback(cotangent), reference(cotangent), rtol=1e-12, atol=1e-13
        )


def test_what_the_function_computes_beside_comes_with_it():
    slope, aux = gradient(lambda x: ((x**2).sum(), {"beside": x + 1}), torch.ones(2), has_aux=True)
    assert torch.equal(slope, torch.full((2,), 2.0))
    assert torch.equal(aux["beside"], torch.full((2,), 2.0))


@pytest.mark.parametrize("own", [False, True])
def test_a_gradient_can_be_differentiated_w_r_t_what_the_function_captures(own):
    scale, x = torch.tensor(3.0, requires_grad=True), torch.ones(2, requires_grad=own)
    slope = gradient(lambda x: scale * (x**2).sum(), x)
    slope.sum().backward()
    assert scale.grad == 4.0
    with torch.no_grad():
        assert not gradient(lambda x: scale * (x**2).sum(), x).requires_grad


def test_what_was_made_of_the_argument_outside_the_function_is_constant():
    x = torch.tensor([2.0], requires_grad=True)
    y = 5 * x
    slope = gradient(lambda x: (x * y).sum(), x)
    assert torch.equal(slope, y)


@pytest.mark.parametrize("wrap", [torch.func.vmap, torch.func.functionalize])
def test_inside_transforms_it_is_torch_func(wrap):
    x = torch.randn(3, 2)
    found = wrap(lambda x: gradient(lambda u: (u**3).sum(), x))(x)
    torch.testing.assert_close(found, 3 * x**2)


def test_inside_a_gradient_transform_it_can_be_differentiated():
    x = torch.randn(2)
    found = torch.func.jacrev(lambda x: gradient(lambda u: (u**3).sum(), x))(x)
    torch.testing.assert_close(found, torch.diag(6 * x))


def test_in_inference_mode():
    with torch.inference_mode():
        x = torch.ones(2)
        assert torch.equal(gradient(lambda u: (u**2).sum(), x), 2 * x)
        value, pullback = vjp(lambda u: u**2, x)
        assert torch.equal(pullback(value)[0], 2 * x)
    assert torch.equal(gradient(lambda u: (u**2).sum(), x), torch.full((2,), 2.0))


def test_traced_graphs_have_no_plain_autograd_in_them():
    traced = torch.fx.experimental.proxy_tensor.make_fx(
        lambda x: gradient(lambda u: (u**2).sum(), x)
    )(torch.ones(2))
    assert torch.equal(traced(torch.full((2,), 3.0)), torch.full((2,), 6.0))


def test_it_can_be_told_to_use_transforms():
    seen = []

    def value(u):
        seen.append(torch._C._functorch.is_gradtrackingtensor(u))
        return (u**2).sum()

    with torch.no_grad():
        gradient(value, torch.ones(2))
        with transforms_only():
            gradient(value, torch.ones(2))
        gradient(value, torch.ones(2))
    assert seen == [False, True, False]


INNER = {
    "gradient flow": lambda loss: (odeopt.GradientFlow(loss, weight_decay=0.1), odeopt.RK4()),
    "heavy ball": lambda loss: (odeopt.HeavyBall(loss, damping=1.5), odeopt.Midpoint()),
    "regularized flow": lambda loss: (odeopt.RegularizedFlow(loss, strength=0.3),),
    "stabilised": lambda loss: (odeopt.GradientFlow(loss), odeopt.StabilizedRK(1e-3, 1e-4)),
    "on nodes": lambda loss: (
        odeopt.GradientFlow(loss), odeopt.RK4(), odeopt.ContinuousAdjoint(odeopt.RK4()),
        odeopt.Every(2), odeopt.Safety(probe=False, step_ratio=None, defect=None, growth=None),
    ),
    "sgd": lambda loss: (odeopt.SGD(loss, momentum=0.9),),
    "adam": lambda loss: (odeopt.Adam(loss),),
    "micro-batches": lambda loss: (odeopt.SGD(loss, micro_batches=2),),
}  # fmt: skip

STATES = {"checkpoints": odeopt.Every(1)}


@pytest.mark.parametrize("name", slow_but(sorted(INNER), "gradient flow", "adam", "sgd"))
def test_a_solve_gives_the_same_numbers_with_both(name, monkeypatch, device):
    problem = smooth_problem(device)
    opt = odeopt.ODEOptimizer(*INNER[name](problem.loss), **STATES if name != "on nodes" else {})
    results = []
    for prepare in (lambda monkeypatch: None, func_only):
        prepare(monkeypatch)
        results.append(
            opt.value_and_grad(problem.loss)(
                problem.params, problem.batch, odeopt.TimeGrid.from_lr(0.05, 8),
                problem.outer_batch, None if name == "micro-batches" else problem.hparams,
            )
        )  # fmt: skip
    found, expected = (
        tree.tensors((r.value, r.grads.params, r.grads.hparams, r.grads.dt)) for r in results
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    recorded, wrapped = (result.stats for result in results)
    assert wrapped.recorded_steps == 0  # only plain autograd keeps graphs
    assert replace(recorded, recorded_steps=0, graph_bytes=0) == wrapped
