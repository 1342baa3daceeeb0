"""What workers tell each other: values, errors, and the settings that have to be the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

from odeopt import errors
from odeopt.errors import OdeoptError, WorkerError
from odeopt.inner.stream import Stream
from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently, describe_with_captures, differing
from odeopt.tools.types import PyTree
from odeopt.tools.version import versions

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """An error in a form that every worker can read.

    Attributes:
        kind: the name of the nearest class in `odeopt.errors`, None if there is none.
        message: what it says.
        notes: its notes.
    """

    kind: str | None
    message: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What to tell of an error."""
        ours = [c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__]
        message = str(error) if ours else f"{type(error).__name__}: {error}"
        return cls(ours[0] if ours else None, message, tuple(getattr(error, "__notes__", ())))

    def error(self, rank: int) -> OdeoptError:
        """The error for the other workers."""
        kind = WorkerError if self.kind is None else getattr(errors, self.kind)
        error: OdeoptError = kind(f"worker {rank} failed: {self.message}")
        for note in self.notes:
            error.add_note(note)
        return error


@dataclass(frozen=True, eq=False)
class Message(Generic[T]):
    """What a worker has to say in an exchange called `what`."""

    what: str
    value: T | None
    failure: Failure | None = None

    @classmethod
    def make(cls, what: str, make: Callable[[], T]) -> tuple[Message[T], Exception | None]:
        """The message with the value, or with why there is none; and the error itself."""
        try:
            return cls(what, make()), None
        except Exception as error:  # whatever it is, the others wait for it
            return cls(what, None, Failure.of(error)), error


def read(messages: list[Message[T]], own: Exception | None) -> list[T]:
    """The values of all workers.

    Raises:
        Exception: this worker's own error, if it met one.
        OdeoptError: the error of the first other worker that met one.
        WorkerError: if the workers do different things.
    """
    if own is not None:
        raise own
    for rank, message in enumerate(messages):
        if message.failure is not None:
            raise message.failure.error(rank)
    whats = [message.what for message in messages]
    if len(set(whats)) > 1:
        told = ", ".join(f"worker {rank} in {what!r}" for rank, what in enumerate(whats))
        raise WorkerError(
            f"the workers have come to different places: {told}. Every worker must make the same"
            " calls in the same order; let the rank decide only what is printed or written."
        )
    return [message.value for message in messages]  # pyright: ignore[reportReturnType]


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


def shorten(full: Mapping[str, str]) -> dict[str, str]:
    """What has to be sent of them."""
    return {name: text if len(text) <= SHORT else _digest(text) for name, text in full.items()}


def compare(told: Sequence[Mapping[str, str]], when: str) -> None:
    """Raise `WorkerError` unless the texts of all workers are those of worker 0."""
    wrong = [rank for rank, mine in enumerate(told) if mine != told[0]]
    if not wrong:
        return
    names = differing(told[0], told[wrong[0]])
    shown = filter(None, (_show(name, told[wrong[0]], told[0]) for name in names))
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
