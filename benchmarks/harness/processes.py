"""Measurements in a process of their own, which may run out of memory or time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import memory

ROOT = Path(__file__).resolve().parents[2]
DID_NOT_FIT = "did not fit"
DID_NOT_FINISH = "did not finish"
NOT_TRIED = "not tried"

_OUT_OF_MEMORY = (signal.SIGKILL, signal.SIGABRT)
"""How the system, and C++, end a process for which there is no memory."""


class ChildError(RuntimeError):
    """A process ended with an error that is no result."""


def run_module(
    module: str, job: str, limit: float, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """What `python -m MODULE JOB` prints in its last line, as JSON; on one thread.

    Args:
        module: What is run; see `guarded` for what it should print.
        job: Its only argument.
        limit: Seconds after which it is ended.
        variables: Of its environment, besides this process's.

    Returns:
        The result, or `outcome` and `message` where the process was ended.

    Raises:
        ChildError: It ended with an error that is no result.
    """
    command = [sys.executable, "-m", module, job]
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env={**environment(), **(variables or {})},
        )
    except subprocess.TimeoutExpired:
        return too_slow(limit)
    if ended.returncode != 0:
        return after_exit(ended.returncode, command, ended.stderr)
    return json.loads(ended.stdout.strip().splitlines()[-1])


def environment() -> dict[str, str]:
    """The variables of a child process: this one's, with one thread and this checkout's code."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def too_slow(limit: float) -> dict[str, Any]:
    """The result of a process that was ended after so many seconds."""
    return {"outcome": DID_NOT_FINISH, "message": f"more than {limit:g} seconds"}


def after_exit(code: int, command: Sequence[str], errors: str) -> dict[str, Any]:
    """The result of a process that ended before it had one.

    Args:
        code: Its exit status.
        command: What was run, for the message.
        errors: What it wrote to standard error.

    Raises:
        ChildError: It was not for want of memory.
    """
    if -code in _OUT_OF_MEMORY:
        return {"outcome": DID_NOT_FIT, "message": f"ended by signal {-code}"}
    raise ChildError(f"{' '.join(command)} failed:\n{errors[-2000:]}")


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
