"""Stored results: atomic, strict JSON, and absent where they cannot be trusted."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from benchmarks.harness import strict_json
from benchmarks.harness.store import ResultStore, fingerprint
from odeopt.tools import files

MARK = fingerprint({"preset": "quick"})


def test_a_value_is_read_back(tmp_path):
    store = ResultStore(tmp_path)
    returned = store.put("euler T=0.5 N=10", MARK, {"error": 1e-3, "pair": (1, 2)})
    assert returned == {"error": 1e-3, "pair": [1, 2]}
    assert ResultStore(tmp_path).get("euler T=0.5 N=10", MARK) == returned


def test_another_key_or_fingerprint_counts_as_absent(tmp_path):
    store = ResultStore(tmp_path)
    store.put("a", MARK, {"error": 1.0})
    assert store.get("b", MARK) is None
    assert store.get("a", fingerprint({"preset": "paper"})) is None


def test_keys_of_the_same_slug_do_not_collide(tmp_path):
    store = ResultStore(tmp_path)
    keys = ["T=1 / N=2", "t=1 N=2", "x" * 200, "x" * 201]
    for index, key in enumerate(keys):
        store.put(key, MARK, {"index": index})
    assert [store.get(key, MARK) for key in keys] == [{"index": i} for i in range(4)]
    assert store.cell_path("T=1 / N=2").name.startswith("t=1-n=2-")


@pytest.mark.parametrize("key", ["../../up", "a\\b", "..", "é/∂", ""])
def test_cells_stay_in_their_folder(tmp_path, key):
    store = ResultStore(tmp_path)
    store.put(key, MARK, {"ok": 1})
    assert store.cell_path(key).resolve().parent == tmp_path / "cells"
    assert store.get(key, MARK) == {"ok": 1}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"value": NaN}'])
def test_a_damaged_file_counts_as_absent(tmp_path, damage):
    store = ResultStore(tmp_path)
    store.put("a", MARK, {"error": 1.0})
    store.cell_path("a").write_bytes(damage)
    assert store.get("a", MARK) is None


def test_every_truncation_counts_as_absent(tmp_path):
    store = ResultStore(tmp_path)
    store.put("a", MARK, {"error": math.nan, "text": "x"})
    whole = store.cell_path("a").read_bytes()
    for length in range(len(whole) - 1):  # the last byte is only the final newline
        store.cell_path("a").write_bytes(whole[:length])
        assert store.get("a", MARK) is None


def test_a_nested_mark_of_a_wrong_type_counts_as_absent(tmp_path):
    store = ResultStore(tmp_path)
    store.put("a", MARK, {"error": 1.0})
    for content in ("[1]", "null", '{"x": 1}', '"?"'):
        text = f'{{"key": "a", "fingerprint": "{MARK}", "value": {{"$nonfinite": {content}}}}}'
        store.cell_path("a").write_text(text)
        assert store.get("a", MARK) is None


def test_nonfinite_numbers_survive_in_strict_json(tmp_path):
    store = ResultStore(tmp_path)
    value = {"a": math.nan, "b": [math.inf, -math.inf], "c": "nan", "d": None}
    store.put("a", MARK, value)
    text = store.cell_path("a").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = store.get("a", MARK)
    assert found is not None
    assert math.isnan(found.pop("a"))
    assert found == {"b": [math.inf, -math.inf], "c": "nan", "d": None}


@pytest.mark.parametrize("value", [torch.ones(()), {1: 2}, {"$nonfinite": "nan"}, {"a": {1}}])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError):
        strict_json.dumps({"value": value})


def test_a_crash_during_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "report.md", "old")

    def crash(*_):
        raise OSError("disk full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, crash)
            with pytest.raises(OSError, match="disk full"):
                files.write_text(path, "new and longer")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_refused_value_leaves_the_old_cell(tmp_path):
    store = ResultStore(tmp_path)
    store.put("a", MARK, {"error": 1.0})
    with pytest.raises(TypeError):
        store.put("a", MARK, {"error": torch.ones(())})
    assert store.get("a", MARK) == {"error": 1.0}


def test_reports_are_written_into_the_folder(tmp_path):
    store = ResultStore(tmp_path / "new")
    assert store.write_text("report.md", "∂ ± é\n").read_text(encoding="utf-8") == "∂ ± é\n"
    assert strict_json.loads(store.write_json("all.json", [1.5, "x"]).read_text()) == [1.5, "x"]


def test_fingerprints_depend_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
