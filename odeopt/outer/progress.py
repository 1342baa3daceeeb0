"""How a run shows where it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from odeopt.errors import CompatibilityError
from odeopt.outer.metrics import Step


@contextmanager
def progress(total: int, done: int, shown: bool) -> Generator[Callable[[Step], None]]:
    """A progress bar on standard error with the loss and the updates per second.

    Raises:
        CompatibilityError: if it should be shown on a terminal, but rich is not installed.
    """
    try:
        from odeopt.outer.bar import bar  # noqa: PLC0415
    except ImportError as error:
        if shown and sys.stderr.isatty():
            raise CompatibilityError(
                "show_progress=True needs the package rich: run `pip install 'odeopt[progress]'`,"
                " or pass show_progress=False."
            ) from error
        yield lambda step: None
        return
    with bar(total, done, shown) as show:
        yield show
