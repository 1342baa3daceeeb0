"""What is taken for rounding, and what for a mistake, when a compiled kernel is checked."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt.engine.compile import Trace
from odeopt.engine.compile import compiler as compilation
from odeopt.engine.stats import Stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_result_may_be_off_by_rounding_of_large_ones(dtype):
    eps = torch.finfo(dtype).eps
    large, small = torch.ones(3, dtype=dtype), torch.full((), eps**0.4, dtype=dtype)
    assert compilation._disagreement([large, small], [large, small + 5 * eps]) == 0
    for wrong in ([large, small * 1.5], [large * (1 + eps**0.4), small]):
        assert compilation._disagreement([large, small], wrong) > eps**0.5


@pytest.mark.parametrize(
    ("params", "limit", "mistaken"),
    [
        (1e9, 10.0, False),
        (1e9, 0.0, True),
        (1e3, 10.0, True),  # large, but such numbers occur
        (torch.inf, 10.0, False),
        (torch.inf, 0.0, True),
        (torch.nan, 10.0, False),
        (torch.nan, -1.0, True),
    ],
)
def test_what_huge_inputs_magnify_is_no_mistake(monkeypatch, params, limit, mistaken):
    def off(self, graph, inputs):
        def run(x, index):
            wild = not bool((x.abs() <= limit).all())
            return [found + wild for found in graph(x, index)]

        return run

    monkeypatch.setattr(Trace, "compile", off)

    def find():
        args = torch.full((3,), params), torch.tensor([0, 2])
        kernel = compilation.Compiler("trace").find
        return kernel("double", None, lambda x, index: 2 * x[index], args, Stats())

    if mistaken:
        with pytest.raises(odeopt.CompilationError, match="double kernel gives other numbers"):
            find()
    else:
        assert find().run is not None


MASKED = {
    "a mask of the batch": lambda p, b: (p - b)[b > 0].square().mean(),
    "a mask of the parameters": lambda p, b: (p - b)[p > 0.1].square().mean(),
    "masked_select": lambda p, b: torch.masked_select(p - b, b > 0).square().mean(),
    "nonzero": lambda p, b: p[(b > 0).nonzero()].square().mean(),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.filterwarnings("ignore:the compiled:UserWarning")
def test_shapes_that_depend_on_numbers_run_eagerly(device, name):
    torch.manual_seed(0)
    data = torch.randn(6, 4, dtype=torch.float64, device=device)  # 1 to 4 of each are positive
    start = torch.tensor([1.0, -0.2, 0.3, -0.4], dtype=torch.float64, device=device)

    def gradient(compile):
        flow = odeopt.GradientFlow(MASKED[name])
        call = odeopt.ODEOptimizer(flow, compile=compile).value_and_grad(lambda p, b: (p * b).sum())
        grid = odeopt.TimeGrid.from_lr(0.1, 6)
        return call(start, odeopt.Stream(lambda k: data[k]), grid, data[0]).grads.params

    expected = gradient(None)
    with pytest.warns(odeopt.OdeoptWarning, match=r"shapes that depend on the numbers.*where"):
        found = gradient("trace")
    assert torch.equal(found, expected)


def test_an_index_of_integers_is_compiled(device):
    index = torch.tensor([0, 2], device=device)
    flow = odeopt.GradientFlow(lambda p, b: (p - b)[index].square().sum())
    call = odeopt.ODEOptimizer(flow, compile="trace").value_and_grad(lambda p, b: p.sum())
    x = torch.ones(3, dtype=torch.float64, device=device)
    res = call(0 * x, x, odeopt.TimeGrid.from_lr(0.1, 3), x)
    assert res.stats.compile_misses > 0
    expected = torch.tensor([0.8**3, 1.0, 0.8**3], dtype=x.dtype, device=device)
    torch.testing.assert_close(res.grads.params, expected)
