"""Many compositions one after the other, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from random import Random
from typing import TextIO

from .compare import Outcome, outcome
from .composition import Composition, draw


@dataclass
class Campaign:
    """What became of compositions.

    Attributes:
        failures: those for which odeopt is to blame.
        kinds: how many there were of each kind; refusals by the class of the error.
        refusals: what refusals said.
        choices: how often each value of a field was right.
        worst: the largest relative error of those that are right, and its composition.
        seconds: how long it took.
    """

    failures: list[tuple[Composition, Outcome]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    choices: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: tuple[float, Composition] = (0.0, Composition())
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """The number of compositions."""
        return self.kinds.total()

    @property
    def right(self) -> float:
        """The share of those that were compared and found right."""
        return self.kinds["right"] / max(self.count, 1)

    def add(self, c: Composition, found: Outcome) -> None:
        """Take note of an outcome."""
        refused = found.kind == "refused"
        self.kinds[f"refused ({found.reason})" if refused else found.kind] += 1
        if refused:
            self.refusals[_shortened(found.message)] += 1
        if found.failed:
            self.failures.append((c, found))
        if found.kind == "right":
            self.worst = max(self.worst, (found.error, c), key=lambda pair: pair[0])
            for part in fields(c):
                if part.name not in ("seed", "observe"):
                    self.choices[part.name, str(getattr(c, part.name))] += 1

    def report(self) -> str:
        """What happened, as Markdown."""
        error, c = self.worst
        lines = [
            "# Random compositions against unrolled autograd",
            "",
            f"{self.count} compositions in {self.seconds:.0f} s, {self.right:.1%} of them right;"
            f" the largest relative error is {error:.1e}, in `{c!r}`.",
            "",
            *_table("outcome", self.kinds),
            *_table("refusal", self.refusals),
            *_table("right with", Counter({f"{k} = {v}": n for (k, v), n in self.choices.items()})),
        ]
        return "\n".join(lines) + "\n"


def drawn(seeds: Iterable[int]) -> Iterator[Composition]:
    """The composition of each seed."""
    for seed in seeds:
        yield draw(Random(seed))


def run(compositions: Iterable[Composition], progress: TextIO | None = None) -> Campaign:
    """Check each composition, until interrupted; a line of progress now and then."""
    campaign, start = Campaign(), time.monotonic()
    with suppress(KeyboardInterrupt):
        for c in compositions:
            campaign.add(c, outcome(c))
            campaign.seconds = time.monotonic() - start
            if progress is not None and campaign.count % 50 == 0:
                failed = len(campaign.failures)
                line = f"{campaign.count} done, {failed} failed, {campaign.seconds:.0f} s"
                print(line, file=progress, flush=True)
    return campaign


def _table(title: str, counts: Counter[str]) -> list[str]:
    if not counts:
        return []
    rows = [f"| {name} | {count} |" for name, count in sorted(counts.items())]
    return [f"| {title} | count |", "|---|---|", *rows, ""]


def _shortened(message: str) -> str:
    """The beginning of a message, without numbers, so that the same refusals are counted as one."""
    first = message.partition("\n")[0]
    text = "".join("#" if letter.isdigit() else letter for letter in first)
    return text.replace("|", "/")[:110]
