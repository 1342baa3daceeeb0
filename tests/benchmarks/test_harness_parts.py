"""Benchmarks of several parts: what is computed, and one report of all."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from benchmarks.harness.registry import (
    Benchmark,
    IncompleteError,
    Preset,
    Settings,
    UnknownCellError,
)
from benchmarks.harness.store import ResultStore


@pytest.fixture
def ran(monkeypatch):
    """What was asked of the parts "one" and "two"."""
    asked = []

    def part(name):
        def run(settings):
            asked.append((name, settings.only))
            assert torch.get_default_dtype() is torch.float64  # that of all tests
            torch.set_default_dtype(torch.float32)
            if settings.only == "unknown" or (settings.only == "a" and name == "two"):
                raise UnknownCellError("no such cell")
            if settings.only == "half":
                raise IncompleteError(1, 2)
            settings.store.write_text("report.md", f"# Part {name}\n\n## Inside\n\n![p](p.png)\n")

        module = types.ModuleType(f"a_part_{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)

    part("one")
    part("two")
    return asked


def run(tmp_path, only=""):
    parts = {"one": "a_part_one", "two": "a_part_two"}
    benchmark = Benchmark("all", "", title="All", parts=parts)
    settings = Settings(
        Preset.SMOKE, ResultStore(tmp_path), None, torch.device("cpu"), only
    )  # fmt: skip
    benchmark.run(settings)
    return (tmp_path / "report.md").read_text()


def test_one_report_has_all_parts_one_level_down(ran, tmp_path):
    text = run(tmp_path)
    assert ran == [("one", ""), ("two", "")]
    assert text.startswith("# All\n")
    assert "- Part one (`--only one`)\n- Part two (`--only two`)" in text
    assert "\n## Part two\n\n### Inside\n\n![p](two/p.png)" in text
    assert "Not computed" not in text


def test_one_part_by_itself(ran, tmp_path):
    text = run(tmp_path, "two")
    assert ran == [("two", "")]
    assert "## Part two" in text
    assert "Not computed yet: one." in text
    assert "## Part one" in run(tmp_path, "one")


def test_cells_are_looked_for_in_every_part(ran, tmp_path):
    run(tmp_path, "a")
    assert ran == [("one", "a"), ("two", "a")]
    with pytest.raises(UnknownCellError):
        run(tmp_path, "unknown")
    with pytest.raises(IncompleteError):
        run(tmp_path, "half")
