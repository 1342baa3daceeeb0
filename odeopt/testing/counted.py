"""Functions that count how often they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Counted:
    """A function, and the number of its calls.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """The function's value."""
        self.calls += 1
        return self._function(*args)
