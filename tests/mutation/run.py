"""A run of mutants: which are drawn, what is tried out on each, and what came of it."""

from __future__ import annotations

import ast
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT, ON_A_GPU, Equivalent
from tests.mutation.mutant import Mutant
from tests.mutation.operators import mutants
from tests.mutation.report import Report, Verdict
from tests.mutation.tests_for import Part
from tests.mutation.trials import Job, Outcome, run_all
from tests.mutation.workspace import Workspace

PATIENCE = 3
"""A mutant has so many times as long as its tests take on the code as it is."""

_AT_LEAST = 20.0
"""Seconds that it has in any case."""

_BASELINE_LIMIT = 600.0


class BaselineError(Exception):
    """Tests fail on the code as it is, so that they say nothing about mutants."""


@dataclass(frozen=True)
class Core:
    """The code that is mutated, and its tests.

    Attributes:
        root: the root of the repository.
        parts: the parts by name.
        deselected: tests that are left out, by their ids.
    """

    root: Path
    parts: Mapping[str, Part]
    deselected: tuple[str, ...] = ()

    def possible(self, equivalent: Iterable[Equivalent] = EQUIVALENT) -> list[Mutant]:
        """Every mutant, by part and place, but for those that no test could tell."""
        spared = {(path, line) for path, line, _ in equivalent}
        found: list[Mutant] = []
        for part in self.parts.values():
            for path in part.modules(self.root):
                source = self.read(path)
                hidden = lines_of(source, ON_A_GPU.get(path, ()))
                found += [
                    mutant
                    for mutant in mutants(path, source)
                    if (path, mutant.changed_line(source)) not in spared
                    and mutant.line(source) not in hidden
                ]
        return found

    def read(self, path: str) -> bytes:
        """The source of a module."""
        return (self.root / path).read_bytes()

    def has(self, path: str) -> bool:
        """Whether a module belongs to it."""
        return any(path in part.modules(self.root) for part in self.parts.values())

    def part_of(self, path: str) -> str:
        """The name of the part that a module belongs to."""
        return next(name for name, part in self.parts.items() if path in part.modules(self.root))


def lines_of(source: bytes, functions: Collection[str]) -> set[int]:
    """The lines of some functions of a module, by their names."""
    return {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name in functions
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def draw(possible: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many mutants, spread evenly: one of each of as many equal stretches."""
    count = min(count, len(possible))
    chance = random.Random(seed)
    ends = [len(possible) * k // max(count, 1) for k in range(count + 1)]
    return [possible[chance.randrange(a, b)] for a, b in pairwise(ends)]


def try_out(
    core: Core,
    chosen: Sequence[Mutant],
    workspaces: Sequence[Workspace],
    say: Callable[[str], None],
) -> list[Verdict]:
    """The verdict on each mutant.

    Raises:
        BaselineError: if a test fails without a mutant.
    """
    seconds = _baseline(core, {mutant.path for mutant in chosen}, workspaces, say)
    jobs = [_job(core, mutant, seconds) for mutant in chosen]
    verdicts: dict[Job, Verdict] = {}
    for job, outcome in run_all(jobs, workspaces):
        verdicts[job] = found = _judge(core, job, outcome)
        end = f"killed by {found.by}" if found.killed else "SURVIVED"
        say(f"[{len(verdicts)}/{len(jobs)}] {job.name}: {end} ({found.seconds:.0f} s)")
    return [verdicts[job] for job in jobs]


def run(
    core: Core, named: Sequence[Mutant], count: int, seed: int, workspaces: Sequence[Workspace],
    say: Callable[[str], None],
) -> Report:  # fmt: skip
    """Try out the mutants that have names, and as many others as `count` leaves."""
    begin = time.monotonic()
    possible = core.possible()
    chosen = [*named, *draw(possible, max(count - len(named), 0), seed)]
    verdicts = try_out(core, chosen, workspaces, say)
    return Report(verdicts, len(possible), seed, time.monotonic() - begin)


def _baseline(
    core: Core, paths: set[str], workspaces: Sequence[Workspace], say: Callable[[str], None]
) -> dict[str, float]:
    """How long each test file of some modules takes on the code as it is."""
    jobs: list[Job] = []
    for name, part in core.parts.items():
        tests = part.tests_of_all(path for path in part.modules(core.root) if path in paths)
        if tests:
            jobs.append(Job(name, None, tests, core.deselected, _BASELINE_LIMIT))
    seconds: dict[str, float] = {}
    for job, outcome in run_all(jobs, workspaces):
        if not outcome.passed:
            raise BaselineError(
                f"the tests of {job.name} fail without a mutant: {outcome.failed or 'no test ran'}."
                f" Mend them first. pytest says:\n{outcome.output[-2000:]}"
            )
        say(f"the tests of {job.name} pass in {outcome.seconds:.0f} s")
        for file, spent in outcome.by_file.items():
            seconds[file] = max(spent, seconds.get(file, 0.0))
    return seconds


def _job(core: Core, mutant: Mutant, seconds: Mapping[str, float]) -> Job:
    tests = core.parts[core.part_of(mutant.path)].tests_of(mutant.path)
    files = {test.partition("::")[0] for test in tests}
    limit = _AT_LEAST + PATIENCE * sum(seconds.get(file, 0.0) for file in files)
    line = mutant.line(core.read(mutant.path))
    return Job(f"{mutant.path}:{line} {mutant.operator}", mutant, tests, core.deselected, limit)


def _judge(core: Core, job: Job, outcome: Outcome) -> Verdict:
    assert job.mutant is not None, "only those are judged"
    mutant, source = job.mutant, core.read(job.mutant.path)
    by = outcome.failed or "an error outside of tests"
    if not outcome.in_time:
        by = f"time: more than {job.limit:.0f} s"
    return Verdict(
        core.part_of(mutant.path), mutant.path, mutant.line(source), mutant.operator,
        mutant.diff(source), not outcome.passed, "" if outcome.passed else by, outcome.seconds,
    )  # fmt: skip
