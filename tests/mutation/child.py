"""One run of some tests in a process that has been forked from one with everything imported."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.mutation.workspace import Workspace

OWN = ("odeopt", "odeopt_plugins", "tests", "support")
"""The packages that a child imports anew, from its workspace."""

REPOSITORY = Path(__file__).resolve().parents[2]

_MOST_MEMORY = 8 << 30
"""In bytes: a loop without end must not take what other processes need."""


def run_tests(workspace: Workspace, tests: Sequence[str], deselected: Sequence[str], output: Path,
              notes: Path) -> NoReturn:  # fmt: skip
    """Run tests until one fails, in a process of its own; ends with pytest's exit code."""
    code = 70  # of this file's own failure
    try:
        os.setsid()  # so that what tests start ends with them
        _write_to(output)
        _enter(workspace)
        noted = _Notes()
        arguments = [
            "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short",
            "-W", "ignore::pytest.PytestAssertRewriteWarning",  # hypothesis is there already
            "-m", "not slow and not compile and not gpu", "--rootdir", str(workspace.root),
            *(f"--deselect={name}" for name in deselected), *tests,
        ]  # fmt: skip
        code = int(pytest.main(arguments, plugins=[noted]))
        notes.write_text(json.dumps({"seconds": noted.seconds, "failed": noted.failed}))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Notes:
    """A plugin that notes how long each file takes, and what fails first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] = self.seconds.get(file, 0.0) + report.duration
        self._look(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._look(report)

    def _look(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _write_to(output: Path) -> None:
    descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(standard, "w", closefd=False) for standard in (1, 2))


def _enter(workspace: Workspace) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY, _MOST_MEMORY))
    os.chdir(workspace.root)
    paths = workspace.import_paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["HYPOTHESIS_PROFILE"] = "mutation"
    here = {REPOSITORY, REPOSITORY / "plugins", REPOSITORY / "tests", Path()}
    sys.path[:] = [*paths, *(path for path in sys.path if Path(path) not in here)]
    for name in list(sys.modules):
        if name.partition(".")[0] in OWN:
            del sys.modules[name]
