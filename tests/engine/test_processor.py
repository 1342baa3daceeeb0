"""What the processor is."""

from __future__ import annotations

import pytest

from odeopt.engine.compile.lowering import processor


@pytest.mark.parametrize(
    ("table", "expected"),
    [("vendor_id\t: GenuineIntel\n", False), ("vendor_id\t: AuthenticAMD\n", True)],
)
def test_the_processor_is_told_by_its_vendor(monkeypatch, table, expected):
    monkeypatch.setattr(processor.Path, "exists", lambda path: True)
    monkeypatch.setattr(processor.Path, "read_text", lambda path: table)
    assert processor.on_amd.__wrapped__() is expected


@pytest.mark.parametrize("expected", [True, False])
def test_where_there_is_no_table_python_is_asked(monkeypatch, expected):
    monkeypatch.setattr(processor.Path, "exists", lambda path: False)
    named = "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD" if expected else "arm"
    monkeypatch.setattr(processor.platform, "processor", lambda: named)
    assert processor.on_amd.__wrapped__() is expected


@pytest.mark.parametrize(("bits", "expected"), [(512, True), (256, False), (0, False)])
def test_wide_registers_are_those_that_inductor_uses(monkeypatch, bits, expected):
    from torch._inductor import cpu_vec_isa

    chosen = type("Chosen", (), {"bit_width": lambda self: bits})()
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: chosen)
    assert processor.has_wide_registers() is expected
