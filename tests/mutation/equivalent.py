"""Mutants that no test can kill, each with the reason; they are not drawn."""

from __future__ import annotations

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant by the line that it makes, and why nobody could tell it from the original."""

    path: str
    line: str
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = ()
