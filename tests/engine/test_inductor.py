"""How inductor compiles kernels: with settings of its own, which are undone, or without them."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._inductor import config, cpp_builder, lowering
from torch.fx.experimental.proxy_tensor import make_fx

import odeopt
from odeopt.engine.compile import inductor, rewrites
from odeopt.engine.compile import lowering as own_lowering
from odeopt.testing import relative_error, smooth_problem


def gradients(compile):
    problem = smooth_problem()
    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(problem.loss), compile=compile)
    grid = odeopt.TimeGrid.uniform(0.8, 6)
    call = opt.value_and_grad(problem.loss)
    return call(problem.params, problem.batch, grid, problem.outer_batch).grads.params


def gap_to_eager(loss, params, batch):
    """How far the gradient of tasks is from that without compilation."""
    grid = odeopt.TimeGrid.from_lr(0.1, 4)
    found = [
        odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=compile)
        .value_and_grad(loss, tasks=True)(params, batch, grid, batch)
        .grads.params
        for compile in ("inductor", None)
    ]
    return relative_error(*found)


def settings():
    chosen = (torch.ops.aten.bmm.default, torch.ops.aten.tanh.default)
    marks = config.aot_inductor.metadata
    return config.cpp_wrapper, dict(marks), *(lowering.lowerings[name] for name in chosen)


def test_what_is_set_for_small_kernels_is_undone():
    before = settings()
    with inductor._for_small_kernels():
        assert all(own != other for own, other in zip(settings(), before, strict=True))
    assert settings() == before


WEIGHTS = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)
USES = {
    "a tensor twice": lambda p: (WEIGHTS.to(p) * p).square().sum() + (WEIGHTS.to(p) @ p).cos(),
    "a matrix of its own": lambda p: (torch.tensor([[1.0, -1.0, 2.0, 0.5]]).to(p) @ p).sin().sum(),
    "one number": lambda p: (torch.tensor(3.0).to(p) * p).sin().sum(),
    "numbers that torch makes": lambda p: (
        (torch.arange(4).to(p) * torch.eye(4).to(p) @ p).sin().sum()
    ),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_loss_uses_beside_its_arguments(use, device):
    """Compiled code takes it as one more input: called with too few it read what was not there."""
    params, batch = torch.linspace(-1, 1, 4, device=device), torch.ones(2, 1, device=device)
    assert gap_to_eager(lambda p, b: USES[use](p) * b.sum(), params, batch) <= 1e-12


def test_a_tensor_that_a_loss_uses_is_seen_to_change(device):
    held = torch.ones(3, device=device)
    graph = make_fx(lambda x: [held * x + held])(torch.ones(3, device=device))
    run = inductor.compile_graph(graph, [torch.ones(3, device=device)])
    held.fill_(2)
    assert run(held)[0].tolist() == [6, 6, 6]


def test_what_a_graph_holds_becomes_its_last_inputs():
    held, x = torch.ones(3), torch.ones(3)
    graph = make_fx(lambda x: [held * x + held])(x)
    assert rewrites.holds_something(graph)
    (found,) = rewrites.lift_constants(graph)
    assert found.data_ptr() == held.data_ptr()
    assert not rewrites.holds_something(graph)
    assert all("val" in node.meta for node in graph.graph.find_nodes(op="placeholder"))
    assert graph(x, 2 * held)[0].tolist() == [4, 4, 4]


def test_layers_that_pass_on_what_a_graph_holds_are_left_around_it():
    held, x = torch.ones(3), torch.ones(3)
    graph = make_fx(lambda x: [held * x])(x)
    compiled = torch._inductor.compile(graph, [x])
    assert inductor._without_wrappers(compiled, [x], graph) is compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_one_vector(device, dtype):
    """A last layer with one output: in double precision they are torch's own, in single not."""

    def loss(params, batch):
        return (torch.tanh(batch @ params["in"]) @ params["out"]).square().mean()

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype).to(device)  # noqa: E731
    params, batch = {"in": draw(3, 8), "out": draw(8, 1)}, draw(2, 20, 3)
    assert gap_to_eager(loss, params, batch) <= 100 * torch.finfo(dtype).eps


def products(rows, inner, columns, lead=()):
    """Whether a product of that shape is swapped, and how far it is off then."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(*lead, inner, rows, generator=generator).mT
    second = torch.randn(*lead, inner, columns, generator=generator)
    graph = make_fx(lambda a, b: (a @ b).view(*lead, -1))(first, second)
    rewrites.swap_narrow_products(graph)
    targets = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
    (product,) = (node for node in graph.graph.nodes if node.target in targets)
    swapped = product.args[0].target == torch.ops.aten.transpose.int
    expected = (first @ second).reshape(*lead, -1)
    return swapped, relative_error(graph(first, second), expected)


@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(8, 2, True), (40, 8, True), (40, 9, False), (40, 1, False), (7, 2, False), (2, 2, False)],
)
def test_narrow_products_are_swapped(rows, columns, expected, lead):
    swapped, gap = products(rows, 5, columns, lead)
    assert swapped is expected
    assert gap <= 1e-14


@pytest.mark.parametrize("amd", [True, False])
def test_a_layer_with_few_inputs(monkeypatch, amd, device):
    """The gradient w.r.t. its weights is narrow, and swapped on processors of AMD."""
    monkeypatch.setattr(inductor, "on_amd", lambda: amd)
    monkeypatch.setattr(own_lowering, "on_amd", lambda: amd)

    def loss(params, batch):
        return (torch.tanh(batch @ params["in"].T) @ params["out"]).square().mean()

    params = {"in": torch.ones(16, 2, device=device), "out": torch.ones(16, device=device) / 9}
    batch = torch.linspace(-1, 1, 60, device=device).view(3, 10, 2)
    assert gap_to_eager(loss, params, batch) <= 1e-12


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
