"""Reading the original rating tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.problems.data_files import require

Array = NDArray[Any]

JESTER_NOT_RATED = 9900


@dataclass(frozen=True)
class Table:
    """Ratings as three columns of equal length; every (user, item) pair occurs once."""

    user: Array
    item: Array
    rating: Array


@dataclass(frozen=True)
class Source:
    """A data file, how it is read, and what to tell a person who does not have it."""

    file: str
    read: Callable[[Path], Table]
    origin: str


def _read_text(path: Path, delimiter: str, header: int) -> Table:
    """Lines `user, item, rating, timestamp` after so many lines of header, gzipped."""
    lines = np.loadtxt(path, delimiter=delimiter, skiprows=header, usecols=(0, 1, 2), ndmin=2)
    return Table(lines[:, 0].astype(np.int64), lines[:, 1].astype(np.int64), lines[:, 2])


def _read_columns(path: Path) -> Table:
    """Arrays `user`, `item` and `rating` of equal length."""
    with np.load(path, allow_pickle=False) as file:
        user, item = file["user"].astype(np.int64), file["item"].astype(np.int64)
        return Table(user, item, file["rating"].astype(np.float64))


def _read_jester(path: Path) -> Table:
    """An array `ratings`, users by jokes, in hundredths, 9900 where there is none."""
    with np.load(path, allow_pickle=False) as file:
        matrix = file["ratings"]
    user, item = np.nonzero(matrix != JESTER_NOT_RATED)
    return Table(user, item, matrix[user, item] / 100)


SOURCES = {
    "movielens-small-2016": Source(
        "movielens_latest_small_2016_ratings.csv.gz",
        partial(_read_text, delimiter=",", header=1),
        "It is ratings.csv, gzipped, of MovieLens latest-small as released in October 2016 "
        "(100,004 ratings; later releases differ), by GroupLens: "
        "https://grouplens.org/datasets/movielens/latest/",
    ),
    "movielens-100k": Source(
        "movielens_100k_u.data.gz",
        partial(_read_text, delimiter="\t", header=0),
        "It is u.data, gzipped, of MovieLens-100K, by GroupLens: "
        "https://grouplens.org/datasets/movielens/100k/",
    ),
    "movielens-1m": Source(
        "movielens_1m.npz",
        _read_columns,
        "It holds the first three columns of ratings.dat of MovieLens-1M as NumPy arrays user, "
        "item and rating; get ratings.dat from GroupLens: "
        "https://grouplens.org/datasets/movielens/1m/",
    ),
    "jester-1": Source(
        "jester_1.npz",
        _read_jester,
        "It holds part 1 of Jester data set 1 as a NumPy array ratings (24983 x 100, in "
        "hundredths, 9900 where there is none); get the table from "
        "https://goldberg.berkeley.edu/jester-data/",
    ),
}
"""The readable data sets by name."""


def read(name: str, directory: Path | None) -> Table:
    """Read a data set.

    Args:
        name: One of `SOURCES`.
        directory: The folder of the data sets.

    Raises:
        MissingDataError: The file is not there.
    """
    source = SOURCES[name]
    return source.read(require(directory, source.file, source.origin))
