"""`python -m tests.mutation`: mutation testing of the core.

Everything that takes long to import is imported here, once; each mutant is tried out in a fork.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import hypothesis  # noqa: F401
import numpy  # noqa: F401
import rich.progress  # noqa: F401
import torch
import torchdiffeq  # noqa: F401

from tests.mutation.child import REPOSITORY
from tests.mutation.run import BaselineError, Core, run
from tests.mutation.survivors import named_mutants
from tests.mutation.tests_for import DESELECTED, PARTS
from tests.mutation.workspace import Workspace


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--count", type=_positive, default=100, help="mutants, those with names included"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes which are drawn")
    parser.add_argument("--processes", type=_positive, default=2, help="mutants at a time")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--report", type=Path, required=True, help="the folder of the report")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
    return number


def main() -> int:
    """Run it; 1 if too many mutants survive, 2 if the tests fail without one."""
    arguments = _arguments()
    torch.set_num_threads(1)  # before forks: threads do not survive them
    with tempfile.TemporaryDirectory(prefix="odeopt-mutation-") as folder:
        root = Workspace(REPOSITORY, Path(folder) / "original").root  # may be edited meanwhile
        workspaces = [Workspace(root, Path(folder) / str(k)) for k in range(arguments.processes)]
        core = Core(root, {name: PARTS[name] for name in arguments.parts}, DESELECTED)
        named = [mutant for mutant in named_mutants(root) if core.has(mutant.path)]
        try:
            report = run(core, named, arguments.count, arguments.seed, workspaces, _say)
        except BaselineError as error:
            _say(str(error))
            return 2
    report.write(arguments.report)
    _say(f"{report.headline}; see {arguments.report / 'mutants.md'}")
    return 0 if report.is_enough else 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
