"""tanh and products of matrices as inductor is told to make them."""

from __future__ import annotations

from itertools import product as product_of
from uuid import uuid4

import pytest
import torch
from torch._inductor import config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import linear

from odeopt.engine.compile import inductor, lowering
from odeopt.engine.compile.lowering import product
from odeopt.testing import relative_error

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
AMD = pytest.mark.parametrize("amd", [True, False])
MM, BMM, ADDMM, TANH = (
    getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "tanh")
)


@pytest.fixture
def generated(monkeypatch):
    """A processor of AMD with wide registers, and the shapes of the products generated for it."""
    monkeypatch.setattr(lowering, "on_amd", lambda: True)
    monkeypatch.setattr(lowering, "has_wide_registers", lambda: True)
    monkeypatch.setattr(inductor, "kind_of_lowerings", lambda: uuid4().hex)  # not what is on disk
    shapes, by_blocks = [], product._by_blocks

    def noted(first, second, *others):
        shapes.append((*map(int, first.get_size()), int(second.get_size()[2])))
        return by_blocks(first, second, *others)

    monkeypatch.setattr(product, "_by_blocks", noted)
    return shapes


def draw(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


def compiled(function, *inputs):
    """The result of a compiled function."""
    graph = make_fx(lambda *given: [function(*given)])(*inputs)
    with inductor._for_small_kernels():
        return inductor._compile(graph, list(inputs))(*inputs)[0]


def gap(function, *inputs):
    """How far a compiled function is from the same in double precision, in eps."""
    found = compiled(function, *inputs)
    expected = function(*(own.double() for own in inputs))
    return relative_error(found.double(), expected) / torch.finfo(found.dtype).eps


@AMD
def test_which_operations_are_made_otherwise(monkeypatch, amd):
    monkeypatch.setattr(lowering, "on_amd", lambda: amd)
    for wide in (True, False):
        monkeypatch.setattr(lowering, "has_wide_registers", lambda known=wide: known)
        expected = {BMM, TANH, MM, ADDMM} if amd and wide else {BMM, TANH}
        assert set(lowering.own_lowerings()) == expected


def test_kernels_on_disk_are_not_taken_for_those_of_another_kind(monkeypatch):
    seen: list[dict[str, str]] = []
    for amd, wide in product_of((True, False), (True, False)):
        monkeypatch.setattr(lowering, "on_amd", lambda known=amd: known)
        monkeypatch.setattr(lowering, "has_wide_registers", lambda known=wide: known)
        with inductor._for_small_kernels():
            seen.append(dict(config.aot_inductor.metadata))
    assert all(seen.count(marks) == 1 for marks in seen)


@AMD
@DTYPES
def test_tanh(monkeypatch, amd, dtype):
    """Each number by itself, so that none hides behind a larger one."""
    monkeypatch.setattr(lowering, "on_amd", lambda: amd)
    sizes = torch.cat([torch.logspace(-30, 1.5, 900), torch.tensor([0.624, 0.625, 0.626, 1e30])])
    x = torch.cat([sizes, -sizes]).to(dtype)
    expected = torch.tanh(x.double())
    worst = ((compiled(torch.tanh, x).double() - expected) / expected).abs().max()
    assert worst <= 2 * torch.finfo(dtype).eps


@AMD
@DTYPES
def test_tanh_of_what_is_no_usual_number(monkeypatch, amd, dtype):
    monkeypatch.setattr(lowering, "on_amd", lambda: amd)
    infinity = float("inf")
    x = torch.tensor([float("nan"), infinity, -infinity, 0.0, -0.0] * 7, dtype=dtype)
    found = compiled(torch.tanh, x)[-5:]
    assert torch.isnan(found[0])
    assert found[1:].tolist() == [1, -1, 0, 0]
    assert torch.signbit(found[3:]).tolist() == [False, True]


def test_tanh_of_other_types_is_inductors_own(generated):
    x = torch.arange(-20, 20, dtype=torch.bfloat16) / 8
    assert gap(torch.tanh, x) <= 1
    assert gap(torch.tanh, torch.arange(-9, 9)) <= 4


@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 5, 7, 8, 25, 97, 100])
@pytest.mark.parametrize("columns", [3, 16, 37])
def test_products(generated, rows, columns, dtype):
    """Where the number of rows has no divisor that suits, or columns are few, they are MKL's."""
    first, second = draw(3, rows, 20, dtype=dtype), draw(3, 20, columns, dtype=dtype)
    assert gap(torch.bmm, first, second) <= 20
    suits = columns >= 16 and rows not in (1, 97)
    assert generated == ([(3, rows, 20, columns)] if suits else [])


@DTYPES
def test_products_of_one_task(generated, dtype):
    x, weight, bias = draw(30, 20, dtype=dtype), draw(24, 20, dtype=dtype), draw(24, dtype=dtype)
    assert gap(linear, x, weight, bias) <= 20
    assert gap(linear, x, weight) <= 20
    assert generated == [(1, 30, 20, 24)] * 2


def test_products_that_are_too_large_for_it_are_mkls(generated):
    assert gap(torch.mm, draw(10, 1025), draw(1025, 16)) <= 50  # too long a sum
    assert gap(torch.mm, draw(10, 512), draw(512, 129)) <= 50  # too large a factor
    assert gap(torch.mm, draw(10, 512), draw(512, 128)) <= 50
    assert generated == [(1, 10, 512, 128)]


@DTYPES
@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a @ b.mT,
        lambda a, b: a.mT @ a,
        lambda a, b: torch.tanh(a @ b.mT) @ (2 * b),  # neither factor is in memory before
        lambda a, b: a[0].expand(3, 20, 32) @ b,
        lambda a, b: a[:, ::2] @ b[:, :, ::2],
        lambda a, b: a.flip(1) @ b.flip(2),
        lambda a, b: (a @ b.mT) @ b.mT,  # the copy of the transpose is made once
        lambda a, b: torch.baddbmm(a, a, b, beta=0.5, alpha=2.0),
    ],
)
def test_factors_of_all_kinds(generated, function, dtype):
    assert gap(function, draw(3, 20, 32, dtype=dtype), draw(3, 32, 32, dtype=dtype)) <= 50
    assert generated or function.__code__.co_names == ("torch", "baddbmm")


def test_a_transpose_is_copied_once(generated, monkeypatch):
    copies = []
    contiguous = product._with_contiguous_rows

    def noted(matrices, known):
        found = contiguous(matrices, known)
        copies.append(len(known))
        return found

    monkeypatch.setattr(product, "_with_contiguous_rows", noted)
    first, second = draw(3, 20, 32), draw(3, 32, 32)
    assert gap(lambda a, b: (a @ b.mT) @ b.mT + a @ b, first, second) <= 50
    assert copies == [1, 1, 1]
