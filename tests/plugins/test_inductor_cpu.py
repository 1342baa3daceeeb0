"""What "inductor-cpu" changes, where it does, and that nothing of it stays in force."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest
import torch
from odeopt_plugins import inductor_cpu
from odeopt_plugins.inductor_cpu import InductorCPU, swap_narrow_products
from support.compiled import gap_to_eager, gradients
from torch._inductor import config, lowering
from torch.fx.experimental.proxy_tensor import make_fx

import odeopt
from odeopt.testing import relative_error


def in_force():
    marks = config.aot_inductor.metadata
    return config.cpp_wrapper, dict(marks), lowering.lowerings[torch.ops.aten.tanh.default]


def test_what_is_set_for_small_kernels_is_undone():
    before = in_force()
    with inductor_cpu.for_small_kernels():
        assert all(own != other for own, other in zip(in_force(), before, strict=True))
    assert in_force() == before


def test_kernels_on_disk_are_not_taken_for_those_of_another_processor(monkeypatch):
    marks = []
    for amd in (True, False):
        monkeypatch.setattr(inductor_cpu, "on_amd", lambda known=amd: known)
        marks.append(inductor_cpu.mark())
    assert marks[0] != marks[1]
    assert marks[0] == marks[0].strip()


def test_tensors_elsewhere_are_refused():
    x = torch.ones(2, device="meta")
    graph = make_fx(lambda own: [own * 2])(torch.ones(2))
    with pytest.raises(odeopt.CompilationError, match="given tensors on meta; it is for those on"):
        InductorCPU().compile_pure(graph, [x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_with_one_output(dtype):
    def loss(params, batch):
        return (torch.tanh(batch @ params["in"]) @ params["out"]).square().mean()

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    params, batch = {"in": draw(3, 8), "out": draw(8, 1)}, draw(2, 20, 3)
    assert gap_to_eager(loss, params, batch, "inductor-cpu") <= 100 * torch.finfo(dtype).eps


@pytest.mark.parametrize("amd", [True, False])
def test_a_layer_with_few_inputs(monkeypatch, amd):
    """The gradient w.r.t. its weights is narrow, and swapped on processors of AMD."""
    swapped = []
    monkeypatch.setattr(inductor_cpu, "on_amd", lambda: amd)
    monkeypatch.setattr(
        inductor_cpu,
        "swap_narrow_products",
        lambda graph: swapped.append(swap_narrow_products(graph)),
    )

    def loss(params, batch):
        return (torch.tanh(batch @ params["in"].T) @ params["out"]).square().mean()

    params = {"in": torch.ones(16, 2), "out": torch.ones(16) / 9}
    batch = torch.linspace(-1, 1, 60).view(3, 10, 2)
    assert gap_to_eager(loss, params, batch, "inductor-cpu") <= 1e-12
    assert bool(swapped) is amd


def products(rows, inner, columns, lead=()):
    """Whether a product of that shape is swapped, and how far it is off then."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(*lead, inner, rows, generator=generator).mT
    second = torch.randn(*lead, inner, columns, generator=generator)
    graph = make_fx(lambda a, b: (a @ b).view(*lead, -1))(first, second)
    swap_narrow_products(graph)
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


def test_kernels_that_the_settings_do_not_suit_are_compiled_without_them(monkeypatch):
    @contextmanager
    def broken():
        raise NotImplementedError("no shim")
        yield

    monkeypatch.setattr(inductor_cpu, "for_small_kernels", broken)
    with warnings.catch_warnings():
        warnings.simplefilter("error", odeopt.OdeoptWarning)
        found = gradients("inductor-cpu")
    assert relative_error(found, gradients(None)) <= 1e-12


@pytest.mark.parametrize(
    ("table", "expected"),
    [("vendor_id\t: GenuineIntel\n", False), ("vendor_id\t: AuthenticAMD\n", True)],
)
def test_the_processor_is_told_by_its_vendor(monkeypatch, table, expected):
    monkeypatch.setattr(inductor_cpu.Path, "exists", lambda path: True)
    monkeypatch.setattr(inductor_cpu.Path, "read_text", lambda path: table)
    assert inductor_cpu.on_amd.__wrapped__() is expected


@pytest.mark.parametrize("expected", [True, False])
def test_where_there_is_no_table_python_is_asked(monkeypatch, expected):
    monkeypatch.setattr(inductor_cpu.Path, "exists", lambda path: False)
    named = "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD" if expected else "arm"
    monkeypatch.setattr(inductor_cpu.platform, "processor", lambda: named)
    assert inductor_cpu.on_amd.__wrapped__() is expected
