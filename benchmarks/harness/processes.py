"""Measurements in a process of their own, on one thread, which may run out of memory or time."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any
from unittest import mock

import torch

from benchmarks.harness import memory

DID_NOT_FIT = "did not fit"
DID_NOT_FINISH = "did not finish"
NOT_TRIED = "not tried"

_OUT_OF_MEMORY = (signal.SIGKILL, signal.SIGABRT)
"""How the system, and C++, end a process for which there is no memory."""


class ChildError(RuntimeError):
    """A process ended with an error that is no result."""


class Child:
    """A process that stays and calls functions, so that several can be measured in turn.

    It begins anew (nothing of this process's memory is there) and ends with the context.

    Args:
        variables: Of its environment, besides this process's.
    """

    def __init__(self, variables: dict[str, str] | None = None) -> None:
        self._variables = {"OMP_NUM_THREADS": "1", **(variables or {})}

    def __enter__(self) -> Child:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with mock.patch.dict(os.environ, self._variables):
            self._process.start()
        theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._process.kill()
        self._process.join()
        self._connection.close()

    def ask(
        self, function: Callable[..., dict[str, Any]], *args: Any, limit: float
    ) -> dict[str, Any]:
        """What a function of a module returns, or `outcome` and `message` if the process ended.

        Args:
            function: It and its arguments are pickled.
            args: See above.
            limit: Seconds after which the process is ended.

        Raises:
            ChildError: The function raised an error, or the process ended, not for want of memory.
        """
        try:
            self._connection.send((function, args))
            if not self._connection.poll(limit):
                self._process.kill()
                return {"outcome": DID_NOT_FINISH, "message": f"more than {limit:g} seconds"}
            trouble, found = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self._after_exit(function)
        if trouble:
            raise ChildError(f"{_name(function)} failed:\n{trouble[-2000:]}")
        return found

    def _after_exit(self, function: Callable[..., Any]) -> dict[str, Any]:
        self._process.join()
        code = self._process.exitcode or 0
        if -code in _OUT_OF_MEMORY:
            return {"outcome": DID_NOT_FIT, "message": f"ended by signal {-code}"}
        raise ChildError(f"the process of {_name(function)} ended with status {code}")


def run(
    function: Callable[..., dict[str, Any]], *args: Any, limit: float,
    variables: dict[str, str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a function returns in a process of its own; see `Child`."""
    with Child(variables) as child:
        return child.ask(function, *args, limit=limit)


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            answer = "", function(*args)
        except Exception:
            answer = traceback.format_exc(), {}
        connection.send(answer)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def guarded(numbers: Callable[[], dict[str, Any]], gib: float) -> dict[str, Any]:
    """The numbers with `outcome` "", or `outcome` and `message` where memory ran out.

    Args:
        numbers: What is measured.
        gib: The limit, for the message.
    """
    try:
        return {"outcome": "", **numbers()}
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
        return {"outcome": DID_NOT_FIT, "message": f"more than {gib:g} GiB"}


def after_failure(smaller: dict[str, Any] | None, what: str) -> dict[str, Any] | None:
    """The result of a cell that is not tried, where a smaller one had no numbers.

    Args:
        smaller: The result of the smaller one.
        what: Names the smaller one, for the message.
    """
    outcome = (smaller or {}).get("outcome")
    if outcome in (DID_NOT_FIT, DID_NOT_FINISH):
        return {"outcome": NOT_TRIED, "message": f"{what} {outcome}"}
    return None
