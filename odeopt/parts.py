"""Things that are compared part by part, each part known as text by its name."""

from __future__ import annotations

from collections.abc import Mapping


def differing(found: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    """The names of parts that are not the same, or that only one of the two has."""
    return [name for name in {**found, **own} if found.get(name) != own.get(name)]
