"""Files are written whole, with the rights that the umask leaves."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

from odeopt.tools.files import name_without_temporary, write_bytes, write_text


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_counts(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = write_text(tmp_path / "new" / "text", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_text(tmp_path / "text", "old")

    def fail(*args):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, replace = [], os.replace

    def note_name(source, target):
        events.append(("named", source.stat().st_size))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: events.append(("synced", os.fstat(file).st_size)))
    monkeypatch.setattr(os, "replace", note_name)
    path = write_bytes(tmp_path / "bytes", b"12345")
    assert events == [("synced", 5), ("named", 5)]
    assert path.read_bytes() == b"12345"


def test_a_temporary_name_says_what_it_was_for(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(os, "replace", lambda source, target: names.append(source.name))
    write_bytes(tmp_path / "state-000000003", b"")
    assert name_without_temporary(names[0]) == "state-000000003"
    for other in ("state-000000003", ".state-000000003.tmp", ".x.0123456789abcdeg.tmp"):
        assert name_without_temporary(other) == other


ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("odeopt", "plugins") for path in (ROOT / folder).rglob("*.py")]


def loads(text):
    """The calls of torch.load."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == "torch.load"]


def is_safe(call):
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return given.get("weights_only") == "True"


def test_no_file_is_loaded_that_could_run_code():
    found = {path: loads(path.read_text()) for path in SOURCES}
    assert sum(map(len, found.values())) > 0
    assert [path for path, calls in found.items() if not all(map(is_safe, calls))] == []


@pytest.mark.parametrize(
    "way", ["from torch import load", "import pickle", "from pickle import", "import torch as"]
)
def test_there_is_no_other_way_to_load_a_file(way):
    assert [
        path for path in SOURCES if way in path.read_text() and "testing" not in path.parts
    ] == []


def test_an_interruption_just_after_the_file_has_its_name_is_passed_on(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*paths):
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"
