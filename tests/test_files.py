"""Files are written whole, with the rights that the umask leaves."""

from __future__ import annotations

import os
import stat

import pytest

from odeopt.files import name_without_temporary, write_bytes, write_text


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
