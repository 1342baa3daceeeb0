"""The simplest composition that still fails, and a script that shows it."""

from __future__ import annotations

from .compare import Outcome, outcome
from .composition import Composition, simpler

TRIES = 150
"""The most compositions that are tried."""


def shrink(c: Composition, tries: int = TRIES) -> tuple[Composition, Outcome]:
    """A composition that fails as c does, from which no single field can be made simpler."""
    now = outcome(c)
    smaller = True
    while smaller and tries > 0:
        smaller = False
        for candidate in simpler(c):
            if tries == 0:
                break
            tries -= 1
            found = outcome(candidate)
            if found.failed and found.kind == now.kind:
                c, now, smaller = candidate, found, True
                break
    return c, now


def reproduction(c: Composition, found: Outcome) -> str:
    """A script that shows a failure, to be run in the root of the repository."""
    said = "\n".join(f"# {line}" for line in f"{found.reason}: {found.message}".splitlines())
    return f"from tests.fuzz import Composition, check\n\ncheck({c!r})\n{said}\n"
