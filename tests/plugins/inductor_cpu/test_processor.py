"""What the processor is."""

from __future__ import annotations

import pytest
from odeopt_plugins.inductor_cpu import processor


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
