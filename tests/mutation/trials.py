"""Mutants tried out, some at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.child import run_tests
from tests.mutation.mutant import Mutant
from tests.mutation.workspace import Workspace

_PAUSE = 0.02


@dataclass(frozen=True)
class Job:
    """Tests to be run on a mutant, or on the code as it is if that is None.

    Attributes:
        name: what it is called.
        mutant: see above.
        tests: files or ids of tests, in their order.
        deselected: the tests among them that are left out, by their ids.
        limit: seconds after which the run is ended.
    """

    name: str
    mutant: Mutant | None
    tests: tuple[str, ...]
    deselected: tuple[str, ...]
    limit: float


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        passed: whether every test did.
        in_time: whether it ended by itself.
        failed: the id of the first test that failed; empty if that is not known.
        seconds: how long the whole job took.
        by_file: how long the tests of each file took.
        output: what pytest wrote.
    """

    passed: bool
    in_time: bool
    failed: str
    seconds: float
    by_file: dict[str, float]
    output: str


def run_all(jobs: Iterable[Job], workspaces: Sequence[Workspace]) -> Iterator[tuple[Job, Outcome]]:
    """Run each job, one in each workspace at a time; they come in the order in which they end."""
    waiting, free = iter(jobs), list(workspaces)
    running: list[_Trial] = []
    try:
        while True:
            while free and (job := next(waiting, None)) is not None:
                running.append(_Trial(job, free.pop()))
            if not running:
                return
            time.sleep(_PAUSE)
            for trial in [trial for trial in running if trial.has_ended()]:
                running.remove(trial)
                free.append(trial.workspace)
                yield trial.job, trial.finish()
    finally:
        for trial in running:
            trial.finish()


class _Trial:
    """A job that is being run."""

    def __init__(self, job: Job, workspace: Workspace) -> None:
        self.job, self.workspace = job, workspace
        self._output = workspace.root / "output.txt"
        self._notes = workspace.root / "notes.json"
        self._notes.unlink(missing_ok=True)
        self._restore = ExitStack()
        self._restore.enter_context(workspace.changed(job.mutant))
        self._begin, self._code, self._in_time = time.monotonic(), None, True
        self._process = os.fork()
        if self._process == 0:
            run_tests(workspace, job.tests, job.deselected, self._output, self._notes)

    def has_ended(self) -> bool:
        """Whether it has; it is made to if its time is over."""
        if self._code is None:
            process, status = os.waitpid(self._process, os.WNOHANG)
            if process:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self._begin > self.job.limit:
                self._in_time = False
                self._stop()
        return self._code is not None

    def finish(self) -> Outcome:
        """What came out; the workspace is as it was."""
        seconds = time.monotonic() - self._begin
        if self._code is None:
            self._stop()
        with suppress(ProcessLookupError):  # what a test has started and left behind
            os.killpg(self._process, signal.SIGKILL)
        self._restore.close()
        notes = json.loads(self._notes.read_text()) if self._notes.exists() else {}
        return Outcome(
            self._code == 0, self._in_time, notes.get("failed", ""), seconds,
            notes.get("seconds", {}), self._read(self._output),
        )  # fmt: skip

    def _stop(self) -> None:
        for kill in (os.killpg, os.kill):  # it may not have made its group yet
            with suppress(ProcessLookupError):
                kill(self._process, signal.SIGKILL)
        _, status = os.waitpid(self._process, 0)
        self._code = os.waitstatus_to_exitcode(status)

    @staticmethod
    def _read(path: Path) -> str:
        return path.read_text(errors="replace") if path.exists() else ""
