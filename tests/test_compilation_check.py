"""What is taken for rounding, and what for a mistake, when a compiled kernel is checked."""

from __future__ import annotations

import pytest
import torch

import odeopt
from odeopt import compilation
from odeopt.stats import Stats


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
    def off(graph, inputs):
        def run(x, index):
            wild = not bool((x.abs() <= limit).all())
            return [found + wild for found in graph(x, index)]

        return run

    monkeypatch.setitem(compilation.BACKENDS, "trace", off)

    def find():
        args = torch.full((3,), params), torch.tensor([0, 2])
        kernel = compilation.Compiler("trace").find
        return kernel("double", None, lambda x, index: 2 * x[index], args, Stats())

    if mistaken:
        with pytest.raises(odeopt.CompilationError, match="double kernel gives other numbers"):
            find()
    else:
        assert find().run is not None
