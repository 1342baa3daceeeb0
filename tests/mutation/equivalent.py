"""Mutants that no test can kill, each with the reason; they are not drawn."""

from __future__ import annotations

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant by the line that it makes, and why nobody could tell it from the original."""

    path: str
    line: str
    reason: str


EQUIVALENT = (
    Equivalent(
        "odeopt/sweep/adaptive.py",
        "lands = self._t + self._dt * (1 + 1e-9) > target",
        "A step that comes to the target up to 1e-9 of its length lands there; whether one that"
        " misses it by just that to the last bit does, too, is as good either way.",
    ),
    Equivalent(
        "odeopt/store/host.py",
        "block = copy.block.to(copy.device, non_blocking=False)",
        "A copy that is waited for holds the same numbers; it is slower, and on a GPU alone.",
    ),
)
