"""One change of one file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Mutant:
    """Other text in place of some bytes of a file.

    Attributes:
        path: the file, from the root of the repository, with slashes.
        start: the first byte that is replaced.
        stop: the one after the last.
        text: what comes there.
        operator: the name of what made it.
    """

    path: str
    start: int
    stop: int
    text: str
    operator: str

    def apply(self, source: bytes) -> bytes:
        """The whole file with the change."""
        return source[: self.start] + self.text.encode() + source[self.stop :]

    def line(self, source: bytes) -> int:
        """The number of the line in which the change begins, from 1."""
        return source.count(b"\n", 0, self.start) + 1

    def changed_line(self, source: bytes) -> str:
        """The line in which the change begins, as it becomes, without its indentation."""
        return self.apply(source).decode().split("\n")[self.line(source) - 1].strip()

    def diff(self, source: bytes) -> str:
        """The change as a unified diff without context."""
        before, after = (text.decode().splitlines() for text in (source, self.apply(source)))
        lines = list(difflib.unified_diff(before, after, self.path, self.path, "", "", 0, ""))
        return "\n".join(lines[2:])


def replacing(root: Path, path: str, old: str, new: str, operator: str) -> Mutant:
    """A mutant that replaces text which is in a file exactly once.

    Raises:
        LookupError: if it is not there, or more than once.
    """
    source, wanted = (root / path).read_bytes(), old.encode()
    found = source.count(wanted)
    if found != 1:
        raise LookupError(f"{operator}: {path} has {found} times the text {old!r}; expected once.")
    start = source.index(wanted)
    return Mutant(path, start, start + len(wanted), new, operator)
