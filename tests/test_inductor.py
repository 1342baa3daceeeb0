"""How inductor compiles kernels: with settings of its own, which are undone, or without them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._inductor import config, cpp_builder, lowering

import odeopt
from odeopt import inductor
from odeopt.testing import relative_error, smooth_problem


def gradients(compile):
    problem = smooth_problem()
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), compile=compile)
    grid = odeopt.TimeGrid.uniform(0.8, 6)
    call = opt.value_and_grad(problem.loss)
    return call(problem.params, problem.batch, grid, problem.outer_batch).grads.params


def test_what_is_set_for_small_kernels_is_undone():
    def settings():
        chosen = (torch.ops.aten.tanh.default, torch.ops.aten.bmm.default)
        marks = config.aot_inductor.metadata
        return config.cpp_wrapper, dict(marks), *(lowering.lowerings[name] for name in chosen)

    before = settings()
    with inductor._for_small_kernels():
        assert all(own != other for own, other in zip(settings(), before, strict=True))
    assert settings() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_one_vector(device, dtype):
    """A last layer with one output: in double precision they are torch's own, in single not."""

    def loss(params, batch):
        return (torch.tanh(batch @ params["in"]) @ params["out"]).square().mean()

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype).to(device)  # noqa: E731
    params, batch = {"in": draw(3, 8), "out": draw(8, 1)}, draw(2, 20, 3)
    grid = odeopt.TimeGrid.from_lr(0.1, 4)
    found = [
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=compile)
        .value_and_grad(loss, tasks=True)(params, batch, grid, batch)
        .grads.params
        for compile in ("inductor", None)
    ]
    assert relative_error(*found) <= 100 * torch.finfo(dtype).eps


def test_kernels_that_small_ones_settings_do_not_suit_are_compiled_without_them(monkeypatch):
    @contextmanager
    def broken():
        raise NotImplementedError("no shim")
        yield

    monkeypatch.setattr(inductor, "_for_small_kernels", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error", odeopt.OdeoptWarning)
        found = gradients("inductor")
    expected = gradients(None)
    assert relative_error(found, expected) <= 1e-12


def test_an_operation_that_fails_says_why(device):
    """Only the second task has an index that there is not: no trial evaluation meets it."""

    def loss(params, batch):
        return torch.tanh(params[batch]).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile="inductor")
    call = opt.value_and_grad(loss, tasks=True)
    params, good = torch.ones(4, device=device), torch.tensor([[0, 1], [2, 3]], device=device)
    grid = odeopt.TimeGrid.from_lr(0.1, 2)
    assert torch.isfinite(call(params, good, grid, good).value)
    if device.type == "cpu":  # a failed assertion ends a CUDA context
        with pytest.raises((IndexError, RuntimeError), match="index 9 is out of bounds"):
            call(params, torch.tensor([[0, 1], [2, 9]]), grid, good)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "no-such-compiler")
    with pytest.raises(odeopt.CompilationError, match=r"needs a C\+\+ compiler such as g\+\+"):
        gradients("inductor")
