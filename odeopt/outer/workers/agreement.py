"""What decides a result, compared between workers before anything is computed together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, final

from odeopt.errors import WorkerError
from odeopt.inner.stream import Stream
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently, describe_with_captures, differing
from odeopt.tools.types import PyTree
from odeopt.tools.version import versions

SHORT = 60
"""Texts up to this length are shown in an error, others compared by a digest."""


@final
class Settings:
    """The objects that every call uses, as text by name.

    They are described anew for each call, with the numbers that their functions have captured;
    tensors in them, which may be large, by their values for the first call and by their shapes
    later.

    Args:
        parts: the objects by name.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts, self._calls = dict(parts), 0

    def texts(self) -> dict[str, str]:
        """What another worker must have as well."""
        first, self._calls = self._calls == 0, self._calls + 1
        own = {
            name: describe_with_captures(part, contents=first) for name, part in self._parts.items()
        }
        return {"the versions": versions(), **own, "the number of calls": str(self._calls)}


def texts(parts: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of one call as text, by name, tensors by their values."""
    return {name: describe_leniently(part) for name, part in parts.items()}


def first_batches(batch: PyTree) -> PyTree:
    """A batch in which each stream goes with its first batch, so that its values are compared."""
    return tree.pytree.tree_map(
        lambda leaf: (leaf, leaf(0)) if isinstance(leaf, Stream) else leaf, batch
    )


def shorten(found: Mapping[str, str]) -> dict[str, str]:
    """What has to be sent of them."""
    return {name: text if len(text) <= SHORT else _digest(text) for name, text in found.items()}


def compare(found: Sequence[Mapping[str, str]], when: str) -> None:
    """Raise `WorkerError` unless the texts of all workers are those of worker 0."""
    wrong = [rank for rank, mine in enumerate(found) if mine != found[0]]
    if not wrong:
        return
    names = differing(found[0], found[wrong[0]])
    shown = filter(None, (_show(name, found[wrong[0]], found[0]) for name in names))
    ranks = ", ".join(map(str, wrong))
    raise WorkerError(
        f"{when}, {' and '.join(names)} of worker {ranks} are not those of worker 0"
        f"{''.join(f' ({text})' for text in shown)}. Every worker must make its objects with the"
        " same settings, begin with the same parameters and be handed the same whole batch: call"
        " torch.manual_seed with one seed, or load both from files. Where an object differs in"
        " nothing that matters, as in a counter of its calls, give its class a method settings()"
        " that returns what matters."
    )


def _show(name: str, other: Mapping[str, str], first: Mapping[str, str]) -> str:
    pair = other.get(name, "none"), first.get(name, "none")
    if any(text.startswith(_PREFIX) for text in pair):
        return ""
    return f"{name}: {pair[0]}, not {pair[1]}"


_PREFIX = "sha256:"


def _digest(text: str) -> str:
    return _PREFIX + hashlib.sha256(text.encode()).hexdigest()
