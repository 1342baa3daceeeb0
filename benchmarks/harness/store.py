"""Results on disk: one small JSON file per cell, so that an interrupted run can go on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import strict_json
from odeopt.tools import files


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A short hash of everything, plain data, that a stored result depends on besides its key."""
    return _digest(strict_json.dumps(dict(settings)))


class ResultStore:
    """A folder of result cells and finished reports, each file written atomically."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def cell_path(self, key: str) -> Path:
        """Where the cell of a key is stored: a readable name plus a hash of the exact key."""
        readable = re.sub(r"[^a-z0-9.=_]+", "-", key.lower()).strip("-.")[:80]
        return self.directory / "cells" / f"{readable}-{_digest(key)[:8]}.json"

    def get(self, key: str, fingerprint: str) -> dict[str, Any] | None:
        """The stored value of a cell.

        Returns:
            None where nothing usable is stored: no file, a truncated or corrupt one, another
            key, or a value computed under another fingerprint.
        """
        try:
            cell = strict_json.loads(self.cell_path(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        expected = {"key": key, "fingerprint": fingerprint}
        if not isinstance(cell, dict) or {name: cell.get(name) for name in expected} != expected:
            return None
        value = cell.get("value")
        return value if isinstance(value, dict) else None

    def put(self, key: str, fingerprint: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Store a cell and return its value as a later `get` returns it (tuples are lists)."""
        cell = {"key": key, "fingerprint": fingerprint, "value": dict(value)}
        text = strict_json.dumps(cell)
        files.write_text(self.cell_path(key), text)
        return strict_json.loads(text)["value"]

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file, e.g. a report, into the folder."""
        return files.write_text(self.directory / name, text)

    def write_json(self, name: str, obj: Any) -> Path:
        """Write plain data as strict JSON into the folder."""
        return self.write_text(name, strict_json.dumps(obj))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
