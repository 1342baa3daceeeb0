"""What a run writes down."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import override

from odeopt.errors import CompatibilityError, StorageError
from odeopt.tools.files import write_text
from odeopt.tools.shown import Shown, number, shown


@dataclass(frozen=True)
class Step(Shown):
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

    @override
    def _shown(self) -> Iterator[str]:
        for part in fields(self):
            value = getattr(self, part.name)
            if value is not None and value != ():
                text = number(value) if isinstance(value, float) else shown(value)
                yield f"{part.name}={text}"


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
        entries: Any = json.loads(line)
    except json.JSONDecodeError:
        return None
    entries["failed"] = tuple(entries["failed"])
    return Step(**entries)


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


@contextmanager
def progress(total: int, done: int, shown: bool) -> Generator[Callable[[Step], None]]:
    """A progress bar on standard error with the loss and the updates per second.

    Raises:
        CompatibilityError: if it should be shown on a terminal, but rich is not installed.
    """
    try:
        from rich import progress as bars  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415
    except ImportError as error:
        if shown and sys.stderr.isatty():
            raise CompatibilityError(
                "show_progress=True needs the package rich: run `pip install 'odeopt[progress]'`,"
                " or pass show_progress=False."
            ) from error
        yield lambda step: None
        return
    console = Console(stderr=True)
    columns = (
        bars.TextColumn("outer updates"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("loss {task.fields[loss]:.4g}, {task.fields[rate]:.1f}/s"),
    )
    hidden = not (shown and console.is_terminal)
    with bars.Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task("", total=total, completed=done, loss=float("nan"), rate=0.0)
        yield lambda step: bar.update(
            task, advance=1, loss=step.value, rate=1 / max(step.seconds, 1e-9)
        )
