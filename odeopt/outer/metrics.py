"""What a run writes down."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from odeopt.errors import CompatibilityError, StorageError
from odeopt.tools.files import write_text


@dataclass(frozen=True)
class Step:
    """One meta-update, as it is logged and handed to callbacks.

    Attributes:
        update: its number, from 0.
        value: the mean validation loss after adaptation, before the update.
        grad_norm: of the meta-gradient w.r.t. everything that is learned, before clipping.
        change: how far the initialisation moved.
        seconds: of the whole update.
        failed: the names of tasks that failed and were left out.
        validation: the mean validation loss on held-out tasks, where it was evaluated.
    """

    update: int
    value: float
    grad_norm: float
    change: float
    seconds: float
    failed: tuple[str, ...] = ()
    validation: float | None = None


class MetricsFile:
    """One line of JSON per meta-update; lines after a checkpoint go when it is restored.

    Raises:
        StorageError: if it cannot be written, or is a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, step: Step) -> None:
        """Add a line."""
        with self._writing():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(step)) + "\n")

    def read(self) -> list[Step]:
        """Every complete line."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [step for line in lines if (step := _parse(line))]

    def truncate(self, updates: int) -> None:
        """Keep the lines of the first updates only."""
        with self._writing():
            kept = [step for step in self.read() if step.update < updates]
            write_text(self._path, "".join(json.dumps(asdict(step)) + "\n" for step in kept))

    @contextmanager
    def _writing(self) -> Generator[None]:
        if self._path.is_symlink():
            raise StorageError(
                f"{self._path} is a symbolic link, and metrics are not written to where another"
                " file may be: remove it, or give the learner another folder."
            )
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"metrics cannot be written to {self._path}: {error}. Give the learner a folder"
                " that can be written to and has room."
            ) from error


def _parse(line: str) -> Step | None:
    """A line, or None for one that an interruption cut short."""
    try:
        found: Any = json.loads(line)
    except json.JSONDecodeError:
        return None
    found["failed"] = tuple(found["failed"])
    return Step(**found)


def tensorboard(folder: str | Path) -> Callable[[Step], None]:
    """A callback that writes each step for TensorBoard.

    Raises:
        CompatibilityError: if the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise CompatibilityError(
            "tensorboard(...) needs the package tensorboard: install it, or read metrics.jsonl."
        ) from error
    writer: Any = SummaryWriter(str(folder))

    def write(step: Step) -> None:
        for name in ("value", "grad_norm", "change", "seconds", "validation"):
            value = getattr(step, name)
            if value is not None:
                writer.add_scalar(name, value, step.update)
        writer.flush()

    return write
