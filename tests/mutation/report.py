"""What a run of mutants came to, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

WANTED = 0.9
"""The share of mutants that must be killed."""


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        part: the part of the core that it is in.
        path: the file.
        line: where the change begins, from 1.
        operator: what made it; for those with a name, that.
        diff: the change.
        killed: whether a test failed, or time ran out.
        by: the id of that test, or how else it was killed; empty if it survived.
        seconds: what it cost.
    """

    part: str
    path: str
    line: int
    operator: str
    diff: str
    killed: bool
    by: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """All verdicts of a run.

    Attributes:
        verdicts: one for each mutant.
        possible: how many mutants of the core there are to draw from.
        seed: fixes which were drawn.
        seconds: of the whole run.
    """

    verdicts: Sequence[Verdict]
    possible: int
    seed: int
    seconds: float

    @property
    def killed(self) -> int:
        """How many were killed."""
        return sum(verdict.killed for verdict in self.verdicts)

    @property
    def is_enough(self) -> bool:
        """Whether so many were killed as is wanted."""
        return self.killed >= WANTED * len(self.verdicts)

    @property
    def headline(self) -> str:
        """The result in one line."""
        total = len(self.verdicts)
        verdict = "enough" if self.is_enough else "too few"
        return f"killed {self.killed} of {total} mutants: {verdict}, {WANTED:.0%} are wanted"

    def markdown(self) -> str:
        """Text to read, the result first."""
        lines = [
            f"# Mutants: {self.headline}", "",
            f"Drawn with seed {self.seed} from {self.possible} mutants of the core; "
            f"{self.seconds / 60:.0f} minutes.",
            "", "| part | killed | of | seconds per mutant |", "| --- | ---: | ---: | ---: |",
            *(self._row(part) for part in dict.fromkeys(v.part for v in self.verdicts)),
            "", "## Survivors", "",
        ]  # fmt: skip
        survivors = [verdict for verdict in self.verdicts if not verdict.killed]
        for one in survivors:
            place = f"{one.path}:{one.line}"
            lines += [f"`{place}` ({one.operator})", "", "```diff", one.diff, "```", ""]
        return "\n".join(lines if survivors else [*lines, "None.", ""])

    def write(self, folder: Path) -> None:
        """Write `mutants.json` and `mutants.md` into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "killed": self.killed, "of": len(self.verdicts), "possible": self.possible,
            "seed": self.seed, "seconds": self.seconds,
            "mutants": [asdict(verdict) for verdict in self.verdicts],
        }  # fmt: skip
        (folder / "mutants.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / "mutants.md").write_text(self.markdown())

    def _row(self, part: str) -> str:
        own = [verdict for verdict in self.verdicts if verdict.part == part]
        killed = sum(verdict.killed for verdict in own)
        seconds = sum(verdict.seconds for verdict in own) / len(own)
        return f"| {part} | {killed} | {len(own)} | {seconds:.0f} |"
