"""What one worker tells the others: a value, or the error that it met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from odeopt import errors
from odeopt.errors import OdeoptError, WorkerError

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
