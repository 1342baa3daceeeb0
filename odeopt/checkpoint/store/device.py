"""The tier of states that stay where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.store.base import Shelf, Tier


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
        return References()


class References(Shelf):
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
