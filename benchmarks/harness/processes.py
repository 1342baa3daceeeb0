"""Measurements in a process of their own, which may run out of memory or time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
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


def run_module(module: str, job: str, limit: float) -> dict[str, Any]:
    """What `python -m MODULE JOB` prints in its last line, as JSON; on one thread.

    Args:
        module: What is run; see `guarded` for what it should print.
        job: Its only argument.
        limit: Seconds after which it is ended.

    Returns:
        The result, or `outcome` and `message` where the process was ended.

    Raises:
        ChildError: It ended with an error that is no result.
    """
    command = [sys.executable, "-m", module, job]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"outcome": DID_NOT_FINISH, "message": f"more than {limit:g} seconds"}
    if -ended.returncode in _OUT_OF_MEMORY:
        return {"outcome": DID_NOT_FIT, "message": f"ended by signal {-ended.returncode}"}
    if ended.returncode != 0:
        raise ChildError(f"{' '.join(command)} failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


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
