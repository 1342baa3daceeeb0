"""What the rating files must hold, and where a person gets them."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.problems import rating_files, ratings
from benchmarks.problems.rating_files import SOURCES, Table

_GROUPLENS = "research use only, no redistribution without GroupLens' permission, acknowledge it"


@dataclass(frozen=True)
class Expected:
    """What is known of a data set.

    Attributes:
        terms: On what terms it may be used.
        counts: Numbers of users, of rated items and of ratings.
        scores: The lowest and the highest rating.
        fewest: Every user has at least so many ratings.
        tasks: Users with at least 10, and at least 20, of the 100 most rated items.
        sha256: The sum of the file that this project's reports were made with.
        unpacked: The sum of its content, where it is gzipped.
        spread: How often each rating occurs, from the lowest up, where this is known.
    """

    terms: str
    counts: tuple[int, int, int]
    scores: tuple[float, float]
    fewest: int
    tasks: tuple[int, int]
    sha256: str
    unpacked: str = ""
    spread: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What was found of a data set.

    Attributes:
        name: The data set.
        present: Whether its file is there.
        wrong: What is wrong with its content; empty if nothing is.
        same_file: Whether the file is, byte for byte, the one that the reports were made with.
    """

    name: str
    present: bool
    wrong: tuple[str, ...] = ()
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
    """Look for a data set and compare it with what is known of it.

    Args:
        name: One of `SOURCES`.
        directory: The folder of the data sets.
    """
    path = None if directory is None else directory / SOURCES[name].file
    if path is None or not path.is_file():
        return Finding(name, present=False)
    expected, content = EXPECTED[name], path.read_bytes()
    same_file = _digest(content) == expected.sha256
    try:
        unpacked = _digest(gzip.decompress(content)) if expected.unpacked else ""
        table = rating_files.read(name, directory)
    except _UNREADABLE as error:
        return Finding(name, True, (f"it cannot be read: {error}",), same_file)
    lengths = {len(column) for column in (table.user, table.item, table.rating)}
    if len(lengths) > 1 or lengths == {0}:
        return Finding(name, True, (f"its columns have the lengths {sorted(lengths)}",), same_file)
    wrong = compare(table, expected)
    if unpacked != expected.unpacked:
        wrong.append(f"its unpacked content has the SHA-256 sum {unpacked}, not the published one")
    return Finding(name, True, tuple(wrong), same_file)


def compare(table: Table, expected: Expected) -> list[str]:
    """In what a table differs from what is known of it."""
    users, per_user = np.unique(table.user, return_counts=True)
    scores, spread = np.unique(table.rating, return_counts=True)
    pairs = len(np.unique(table.user * (table.item.max() + 1) + table.item))
    sizes = (len(users), len(np.unique(table.item)), len(table.rating))
    kept = (~np.isnan(ratings.most_rated(table))).sum(1)
    tasks = tuple(int((kept >= least).sum()) for least in (10, 20))
    found: dict[str, tuple[object, object]] = {
        "users, items and ratings": (sizes, expected.counts),
        "different pairs of user and item": (pairs, expected.counts[2]),
        "lowest and highest rating": ((scores[0].item(), scores[-1].item()), expected.scores),
        "fewest ratings of a user": (int(per_user.min()), expected.fewest),
        "users with 10, and 20, ratings of the 100 most rated items": (tasks, expected.tasks),
    }
    if expected.spread:
        found["ratings of each value"] = (tuple(spread.tolist()), expected.spread)
    return [
        f"{what}: {_text(have)}, expected {_text(want)}"
        for what, (have, want) in found.items()
        if have != want
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text(value: object) -> str:
    return ", ".join(f"{v:,}" for v in value) if isinstance(value, tuple) else f"{value:,}"
