"""The command `python -m benchmarks.check_data`: are the rating files there, and are they right?"""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.__main__ import default_data
from benchmarks.problems import ratings
from benchmarks.problems.ratings import SOURCES, Table

_GROUPLENS = "research use only, no redistribution without GroupLens' permission, acknowledge it"


@dataclass(frozen=True)
class Expected:
    """What is known of a data set."""

    terms: str  # on what terms it may be used
    counts: tuple[int, int, int]  # numbers of users, of rated items and of ratings
    scores: tuple[float, float]  # the lowest and the highest rating
    fewest: int  # every user has at least so many ratings
    tasks: tuple[int, int]  # users with at least 10, and at least 20, of the 100 most rated items
    sha256: str  # the sum of the file that this project's reports were made with
    unpacked: str = ""  # the sum of its content, where it is gzipped
    # how often each rating occurs, from the lowest up, where this is known
    spread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What there is of a data set."""

    present: bool  # whether its file is there
    wrong: tuple[str, ...] = ()  # what is wrong with its content; empty if nothing is
    # whether the file is, byte for byte, the one that the reports were made with
    same_file: bool = False


EXPECTED = {
    "jester-1": Expected(
        "free for research, when acknowledged with Goldberg et al., Eigentaste (2001)",
        (24983, 100, 1810455), (-9.95, 10.0), 36, (24983, 24983),
        "f8e5d6f15e7f337661dffbd640849b72cb3ba490bd9b7a3f5eadd7ea37c1be13",
    ),
    "movielens-small-2016": Expected(
        "research use, acknowledge GroupLens; redistribution under the same terms",
        (671, 9066, 100004), (0.5, 5.0), 20, (489, 338),
        "b722091bcee4c02bbb2e4a5af4647fb9ee740a1b7fea5dad3252bc1b7ef7b5a3",
        "b4239649fbf90ebf405c56c3ae1d929d9e7c86fc1a3a80cbef1c884df593ef73",
    ),
    "movielens-100k": Expected(
        _GROUPLENS, (943, 1682, 100000), (1.0, 5.0), 20, (829, 575),
        "c3fe59d9f784f19e1715f710845ac12970203e783301a9404cd615780b838694",
        "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490",
        (6110, 11370, 27145, 34174, 21201),
    ),
    "movielens-1m": Expected(
        _GROUPLENS, (6040, 3706, 1000209), (1.0, 5.0), 20, (4985, 3500),
        "f4eb70a88016694901b163e684c45a1b819f3750ce4b112c3d9cf3b9146a5a94",
        spread=(56174, 107557, 261197, 348971, 226310),
    ),
}  # fmt: skip
"""By the names of `SOURCES`."""


_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def check(name: str, directory: Path | None) -> Finding:
    """Look for a data set of `SOURCES` and compare it with what is known of it."""
    path = None if directory is None else directory / SOURCES[name].file
    if path is None or not path.is_file():
        return Finding(present=False)
    expected, content = EXPECTED[name], path.read_bytes()
    wrong: list[str] = []
    try:
        unpacked = _digest(gzip.decompress(content)) if expected.unpacked else ""
        table = ratings.read(name, directory)
    except _UNREADABLE as error:
        wrong.append(f"it cannot be read: {error}")
    else:
        wrong += compare(table, expected)
        if unpacked != expected.unpacked:
            own = f"its unpacked content has the SHA-256 sum {unpacked}"
            wrong.append(f"{own}, not the published one")
    return Finding(True, tuple(wrong), _digest(content) == expected.sha256)


def compare(table: Table, expected: Expected) -> list[str]:
    """In what a table differs from what is known of it."""
    lengths = {len(column) for column in (table.user, table.item, table.rating)}
    if len(lengths) > 1 or lengths == {0}:
        return [f"its columns have the lengths {sorted(lengths)}"]
    users, per_user = np.unique(table.user, return_counts=True)
    scores, spread = np.unique(table.rating, return_counts=True)
    pairs = len(np.unique(table.user * (table.item.max() + 1) + table.item))
    sizes = (len(users), len(np.unique(table.item)), len(table.rating))
    kept = (~np.isnan(ratings.most_rated(table))).sum(1)
    tasks = tuple(int((kept >= least).sum()) for least in (10, 20))
    facts: dict[str, tuple[object, object]] = {
        "users, items and ratings": (sizes, expected.counts),
        "different pairs of user and item": (pairs, expected.counts[2]),
        "lowest and highest rating": ((scores[0].item(), scores[-1].item()), expected.scores),
        "fewest ratings of a user": (int(per_user.min()), expected.fewest),
        "users with 10, and 20, ratings of the 100 most rated items": (tasks, expected.tasks),
    }
    if expected.spread:
        facts["ratings of each value"] = (tuple(spread.tolist()), expected.spread)
    return [
        f"{what}: {_text(have)}, expected {_text(want)}"
        for what, (have, want) in facts.items()
        if have != want
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(value: object) -> str:
    return ", ".join(f"{v:,}" for v in value) if isinstance(value, tuple) else f"{value:,}"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    data: Annotated[Path | None, typer.Option(help="The folder of the data sets.")] = None,
) -> None:
    """Say of each rating data set where it comes from, and check the file if it is there."""
    folder = data or default_data()
    typer.echo(f"data folder: {folder or 'none given (--data, or the variable ODEOPT_DATA)'}")
    findings = {name: check(name, folder) for name in SOURCES}
    for name, finding in findings.items():
        source = SOURCES[name]
        verdict = "NOT as expected" if finding.wrong else "there and as expected"
        lines = [
            f"\n{name}: {source.file}, {verdict if finding.present else 'not there'}",
            *(f"  wrong: {what}" for what in finding.wrong),
            f"  {source.origin}",
            f"  Terms: {EXPECTED[name].terms}.",
        ]
        if finding.present and not finding.same_file:
            lines.append(
                "  The file is not, byte for byte, the one that the reports were made with."
            )
        typer.echo("\n".join(lines))
    if any(finding.wrong for finding in findings.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.check_data")
