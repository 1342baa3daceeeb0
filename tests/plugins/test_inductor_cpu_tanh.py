"""tanh as Inductor is told to make it."""

from __future__ import annotations

import pytest
import torch
from odeopt_plugins import inductor_cpu
from torch.fx.experimental.proxy_tensor import make_fx

from odeopt.engine.compile import Inductor
from odeopt.testing import relative_error

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(params=[True, False], ids=["amd", "other"])
def amd(request, monkeypatch):
    monkeypatch.setattr(inductor_cpu, "on_amd", lambda: request.param)
    return request.param


def compiled(x):
    graph = make_fx(lambda own: [torch.tanh(own)])(x)
    with inductor_cpu.for_small_kernels():
        return Inductor().compile(graph, [x])(x)[0]


@DTYPES
def test_numbers(amd, dtype):
    """Each number by itself, so that none hides behind a larger one."""
    sizes = torch.cat([torch.logspace(-30, 1.5, 900), torch.tensor([0.624, 0.625, 0.626, 1e30])])
    x = torch.cat([sizes, -sizes]).to(dtype)
    expected = torch.tanh(x.double())
    worst = ((compiled(x).double() - expected) / expected).abs().max()
    assert worst <= 2 * torch.finfo(dtype).eps


@DTYPES
def test_what_is_no_usual_number(amd, dtype):
    infinity = float("inf")
    x = torch.tensor([float("nan"), infinity, -infinity, 0.0, -0.0] * 7, dtype=dtype)
    found = compiled(x)[-5:]
    assert torch.isnan(found[0])
    assert found[1:].tolist() == [1, -1, 0, 0]
    assert torch.signbit(found[3:]).tolist() == [False, True]


def test_other_types_are_inductors_own(amd):
    x = torch.arange(-20, 20, dtype=torch.bfloat16) / 8
    assert relative_error(compiled(x).double(), torch.tanh(x.double())) <= 2**-8
    x = torch.arange(-9, 9)
    assert relative_error(compiled(x).double(), torch.tanh(x.double())) <= 1e-6
