"""The progress bar of a run; it needs the package rich."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from odeopt.outer.metrics import Step


@contextmanager
def bar(total: int, done: int, shown: bool) -> Generator[Callable[[Step], None]]:
    """A progress bar on standard error with the loss and the updates per second."""
    console = Console(stderr=True)
    columns = (
        TextColumn("outer updates"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4g}, {task.fields[rate]:.1f}/s"),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as shows:
        task = shows.add_task("", total=total, completed=done, loss=float("nan"), rate=0.0)

        def show(step: Step) -> None:
            shows.update(task, advance=1, loss=step.value, rate=1 / max(step.seconds, 1e-9))

        yield show
