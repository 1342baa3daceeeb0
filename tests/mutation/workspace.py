"""Copies of the repository, in which one file at a time is changed."""

from __future__ import annotations

import compileall
import importlib.util
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.mutation.mutant import Mutant

COPIED = ("odeopt", "plugins", "tests", "pyproject.toml")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


class Workspace:
    """A copy of what tests need, so that processes which they start see a mutant, too.

    Args:
        source: the root of the repository.
        root: where the copy is made.
    """

    def __init__(self, source: Path, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)
        for name in COPIED:
            original = source / name
            if original.is_dir():
                shutil.copytree(original, root / name, ignore=_LEFT_OUT)
            elif original.exists():
                shutil.copy2(original, root / name)
        compileall.compile_dir(root, quiet=2)

    @property
    def import_paths(self) -> list[str]:
        """What comes first where modules are looked for."""
        return [str(self.root), str(self.root / "plugins")]

    @contextmanager
    def changed(self, mutant: Mutant | None) -> Generator[None]:
        """One file is another one as long as this lasts."""
        if mutant is None:
            yield
            return
        path = self.root / mutant.path
        original = path.read_bytes()
        _put(path, mutant.apply(original))
        try:
            yield
        finally:
            _put(path, original)


def _put(path: Path, content: bytes) -> None:
    """Write a module; its bytecode, which is known by time and size alone, goes."""
    path.write_bytes(content)
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
