"""Measurements in a process of their own, on one thread, which may run out of memory or time."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch

from benchmarks.harness import costs

DID_NOT_FIT = "did not fit"
DID_NOT_FINISH = "did not finish"
NOT_TRIED = "not tried"

_OUT_OF_MEMORY = (signal.SIGKILL, signal.SIGABRT)
"""How the system, and C++, end a process for which there is no memory."""


class ChildError(RuntimeError):
    """A process ended with an error that is no result."""


class Child:
    """A process that stays and calls functions, so that several can be measured in turn.

    It begins anew (nothing of this process's memory is there), with further variables in its
    environment, and ends with the context.
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

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def ask(
        self, function: Callable[..., dict[str, Any]], *args: Any, limit: float
    ) -> dict[str, Any]:
        """What a function of a module returns, or `outcome` and `message` if the process ended.

        It and its arguments are pickled; after `limit` seconds the process is ended.

        Raises:
            ChildError: The function raised an error, or the process ended, not for want of memory.
        """
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            self._connection.send((function, args))
            if not self._connection.poll(limit):
                self._process.kill()
                return {"outcome": DID_NOT_FINISH, "message": f"more than {limit:g} seconds"}
            trouble, answer = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode or 0
            if -code in _OUT_OF_MEMORY:
                return {"outcome": DID_NOT_FIT, "message": f"ended by signal {-code}"}
            raise ChildError(f"the process of {name} ended with status {code}") from None
        if trouble:
            raise ChildError(f"{name} failed:\n{trouble[-2000:]}")
        return answer


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


def guarded(numbers: Callable[[], dict[str, Any]], gib: float) -> dict[str, Any]:
    """The numbers with `outcome` "", or `outcome` and `message` where they need more memory."""
    try:
        return {"outcome": "", **numbers()}
    except (MemoryError, RuntimeError) as error:
        if not costs.is_out_of_memory(error):
            raise
        return {"outcome": DID_NOT_FIT, "message": f"more than {gib:g} GiB"}
