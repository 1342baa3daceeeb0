"""A process that stays and answers requests, so that several can be measured in turn."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from types import TracebackType
from typing import Any

from benchmarks.harness import processes


class Dialogue:
    """`python -m MODULE JOB`, asked line by line, on one thread; it ends with the context.

    Args:
        module: What is run; it should call `serve`.
        job: Its only argument.
        variables: Of its environment, besides this process's.
    """

    def __init__(self, module: str, job: str, variables: dict[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", module, job]
        self._variables = {**processes.environment(), **(variables or {})}
        self._answers: Queue[str | None] = Queue()

    def __enter__(self) -> Dialogue:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=self._variables,
        )  # fmt: skip
        Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def ask(self, request: str, limit: float) -> dict[str, Any]:
        """The answer to a request, or `outcome` and `message` where the process has none.

        Args:
            request: One line.
            limit: Seconds after which the process is ended.

        Raises:
            ChildError: The process ended with an error that is no result.
        """
        assert self._process.stdin is not None, "it is a pipe"
        try:
            self._process.stdin.write(f"{request}\n")
            self._process.stdin.flush()
            answer = self._answers.get(timeout=limit)
        except Empty:
            self._process.kill()
            return processes.too_slow(limit)
        except BrokenPipeError:
            answer = None
        if answer is not None:
            return json.loads(answer)
        self._errors.seek(0)
        return processes.after_exit(self._process.wait(), self._command, self._errors.read())

    def _read(self) -> None:
        assert self._process.stdout is not None, "it is a pipe"
        try:
            for line in self._process.stdout:
                self._answers.put(line)
        except ValueError:  # closed while it was read
            pass
        self._answers.put(None)


def serve(answer: Callable[[str], dict[str, Any]]) -> None:
    """Answer the lines of standard input until it ends; what is printed meanwhile is no answer."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(line.strip()), sort_keys=True), file=out, flush=True)
