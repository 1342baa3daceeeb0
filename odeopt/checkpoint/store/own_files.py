"""The files that a solve makes, by their exact names; others are never touched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from odeopt.tools.files import name_without_temporary

LOCK = "solve.lock"

ROOT, FORWARD, BACKWARD = "solve.progress", "forward.progress", "backward.progress"
"""Which solve it is, and how far each of its sweeps has come."""

_STATE = re.compile(r"state-(\d{9,})")


def state_file(folder: Path, index: int) -> Path:
    """Where the state of an index is."""
    return folder / f"state-{index:09d}"


def states(folder: Path) -> dict[int, Path]:
    """The files of states in a folder, by index."""
    found = ((_STATE.fullmatch(path.name), path) for path in _regular(folder))
    return {int(match[1]): path for match, path in found if match is not None}


def remove_own(folder: Path) -> None:
    """Remove every file that a solve has made there, except for the lock."""
    for path in _regular(folder):
        name = name_without_temporary(path.name)
        if name in (ROOT, FORWARD, BACKWARD) or _STATE.fullmatch(name):
            path.unlink(missing_ok=True)


def _regular(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    return (Path(entry.path) for entry in found)
