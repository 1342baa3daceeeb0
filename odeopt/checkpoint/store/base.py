"""What a tier is: a place for states, opened anew for each solve; and the one that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.tools.keywords import KnownKeywords
from odeopt.tools.shown import shown


class Shelf(ABC):
    """The states of one solve in one tier, by index.

    What is taken from a shelf is bitwise what was put there.
    """

    @abstractmethod
    def put(self, index: int, state: Tensor) -> None:
        """Keep a state, in place of the one that has the same index."""

    @abstractmethod
    def get(self, index: int) -> Tensor:
        """The state, on the device that it came from."""

    @abstractmethod
    def drop(self, index: int) -> None:
        """Forget a state that is there."""

    def prefetch(self, index: int) -> None:
        """Begin to bring back a state that will be asked for next."""
        del index

    @abstractmethod
    def close(self, done: bool) -> None:
        """Forget every state; `done` says that the solve has come to its end."""


class JournalSettings(NamedTuple):
    """Where progress is saved, and after how many seconds."""

    folder: Path
    seconds: float


class Tier(KnownKeywords, ABC):
    """Where kept states are: on the device of the solve, on the host, on disk or elsewhere."""

    kind: ClassVar[str]
    """The kind of memory: one word. The stats of a solve count "device", "host" and "disk" apart;
    states of any other kind are in `stored_bytes` alone."""

    at_hand: ClassVar[bool] = False
    """Whether states stay where they are used, so that there is nothing to bring back."""

    @property
    def journal(self) -> JournalSettings | None:
        """Where and how often progress is saved, if an interrupted solve is to be resumed."""
        return None

    @abstractmethod
    def open(self) -> Shelf:
        """A shelf for one solve."""

    def settings(self) -> Mapping[str, Any]:
        """What tells two solves apart: not where exactly states are, which changes no number."""
        return {"kind": self.kind}


@final
@dataclass(frozen=True)
class Device(Tier):
    """Kept states stay on the device of the solve: nothing is copied. The default.

    Cost: d numbers of its memory for each state of each task.
    """

    kind: ClassVar[str] = "device"
    at_hand: ClassVar[bool] = True

    @override
    def open(self) -> Shelf:
        return _References()


class _References(Shelf):
    """The tensors themselves."""

    def __init__(self) -> None:
        self._states: dict[int, Tensor] = {}

    @override
    def put(self, index: int, state: Tensor) -> None:
        self._states[index] = state

    @override
    def get(self, index: int) -> Tensor:
        return self._states[index]

    @override
    def drop(self, index: int) -> None:
        del self._states[index]

    @override
    def close(self, done: bool) -> None:
        self._states.clear()


def check_tier(store: object) -> Tier:
    """The tier.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(store, Tier):
        hint = f"; did you mean {store.__name__}()?" if isinstance(store, type) else ""
        raise InputError(
            f"store is {shown(store)}; expected odeopt.Device(), odeopt.Host() or odeopt.Disk(path)"
            f"{hint}."
        )
    return store
