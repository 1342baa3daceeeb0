"""How Inductor compiles kernels, with what losses use beside their arguments."""

from __future__ import annotations

import pytest
import torch
from support.compiled import gap_to_eager, gradients
from torch._inductor import cpp_builder
from torch.fx.experimental.proxy_tensor import make_fx

import odeopt
from odeopt.engine.compile.inductor import lift_constants

BACKENDS = pytest.mark.parametrize("backend", ["inductor", "inductor-cpu"])

WEIGHTS = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)
USES = {
    "a tensor twice": lambda p: (WEIGHTS.to(p) * p).square().sum() + (WEIGHTS.to(p) @ p).cos(),
    "a matrix of its own": lambda p: (torch.tensor([[1.0, -1.0, 2.0, 0.5]]).to(p) @ p).sin().sum(),
    "one number": lambda p: (torch.tensor(3.0).to(p) * p).sin().sum(),
    "numbers that torch makes": lambda p: (
        (torch.arange(4).to(p) * torch.eye(4).to(p) @ p).sin().sum()
    ),
}


@BACKENDS
@pytest.mark.parametrize("use", USES)
def test_what_a_loss_uses_beside_its_arguments(use, backend):
    """Compiled code takes it as one more input: called with too few it read what was not there."""
    params, batch = torch.linspace(-1, 1, 4), torch.ones(2, 1)
    assert gap_to_eager(lambda p, b: USES[use](p) * b.sum(), params, batch, backend) <= 1e-12


def test_what_a_graph_holds_becomes_its_last_inputs():
    held, x = torch.ones(3), torch.ones(3)
    graph = make_fx(lambda x: [held * x + held])(x)
    assert graph.graph.find_nodes(op="get_attr")
    (found,) = lift_constants(graph)
    assert found.data_ptr() == held.data_ptr()
    assert not graph.graph.find_nodes(op="get_attr")
    assert all("val" in node.meta for node in graph.graph.find_nodes(op="placeholder"))
    assert graph(x, 2 * held)[0].tolist() == [4, 4, 4]


@BACKENDS
def test_an_operation_that_fails_says_why(backend):
    """Only the second task has an index that there is not: no trial evaluation meets it."""

    def loss(params, batch):
        return torch.tanh(params[batch]).square().sum()

    opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), compile=backend)
    call = opt.value_and_grad(loss, tasks=True)
    params, good = torch.ones(4), torch.tensor([[0, 1], [2, 3]])
    grid = odeopt.TimeGrid.from_lr(0.1, 2)
    assert torch.isfinite(call(params, good, grid, good).value)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        call(params, torch.tensor([[0, 1], [2, 9]]), grid, good)


@BACKENDS
def test_a_missing_compiler_is_named(monkeypatch, backend):
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: "no-such-compiler")
    with pytest.raises(odeopt.CompilationError, match=r"needs a C\+\+ compiler such as g\+\+"):
        gradients(backend)
