"""Data files that a person has to fetch: none of them is part of this project."""

from __future__ import annotations

from pathlib import Path


class MissingDataError(FileNotFoundError):
    """A data file is not there; the message says which, and where it comes from."""


class BrokenDataError(ValueError):
    """A data file is there, but it does not hold what it should; the message says what."""


def require(directory: Path | None, name: str, origin: str) -> Path:
    """The path of a data file.

    The message says what the file is and where a person gets it.

    Raises:
        MissingDataError: There is no such folder or file.
    """
    if directory is None:
        raise MissingDataError(
            f"{name} is needed, but no data folder is given: name one with --data or the "
            f"environment variable ODEOPT_DATA. {origin}"
        )
    path = directory / name
    if not path.is_file():
        raise MissingDataError(f"{name} is not in the data folder {directory}. {origin}")
    return path
