"""What is in the checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from torch import Tensor

from odeopt.checkpoint.store.checked_file import FileKind
from odeopt.errors import InputError
from odeopt.tools.describing import differing
from odeopt.tools.version import versions

_CHECKPOINT = FileKind(
    "checkpoint",
    "Give the learner a folder that can be written to and has room.",
    "Look at the disk; put a copy of the file back, or begin again in another folder.",
)

_SHOWN = 3


@final
@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after some updates.

    Attributes:
        made_with: the versions of what has computed.
        settings: the parts of the run as text, by name.
        layout: dtypes and shapes of what is learned, by name.
        updates: how many have been made.
        tensors: what is learned, by name.
        optimizer: the memory of the outer optimiser, by name.
        random: the state of torch's random numbers on the CPU.
        schedule: that of the learning-rate schedule, if there is one.
    """

    made_with: str
    settings: dict[str, str]
    layout: dict[str, str]
    updates: int
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: Tensor
    schedule: dict[str, Any] | None = None

    def write(self, path: Path) -> bytes:
        """Write it atomically; the header of the file is returned.

        Raises:
            StorageError: if it cannot be written.
        """
        content = {part.name: getattr(self, part.name) for part in fields(self)}
        return _CHECKPOINT.save(path, content)

    @classmethod
    def read(cls, path: Path) -> tuple[bytes, Checkpoint]:
        """The header of a file and what it holds, on the CPU.

        Raises:
            StorageError: if it is not there, damaged, or of another format.
        """
        header, content = _CHECKPOINT.load(path, "cpu")
        return header, cls(**content)

    def check_settings(self, own: Mapping[str, str], path: Path) -> None:
        """Raise `InputError` if it was made by another run."""
        names = differing(self.settings, own)
        if names:
            others = f" (by {self.made_with}; this is {versions()})"
            raise InputError(
                f"{path} was made by another run{others if self.made_with != versions() else ''},"
                f" which differs in {', '.join(names)}. Make the learner as that one was made, or"
                " give another folder. Where an object differs in nothing that matters, as in a"
                " counter of its calls, give its class a method settings() that returns what"
                " matters."
            )

    def check_layout(self, own: Mapping[str, str], path: Path) -> None:
        """Raise `InputError` if something else was learned."""
        wrong = [
            f"{name} is {self.layout.get(name, 'not there')}, expected {own.get(name, 'nothing')}"
            for name in differing(self.layout, own)
        ]
        if wrong:
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise InputError(
                f"{path} holds other parameters or hparams than those of this learner:"
                f" {'; '.join(wrong[:_SHOWN])}{more}. Make the learner as that one was made, or"
                " give another folder."
            )
