"""Files with a checksum, written whole or not at all."""

from __future__ import annotations

import zlib
from pathlib import Path

from odeopt.errors import StorageError
from odeopt.files import write_bytes

_MAGIC = b"odeopt 1 "


def write_checked(path: Path, body: bytes) -> None:
    """Write a file atomically.

    Raises:
        StorageError: if it cannot be written.
    """
    content = _MAGIC + f"{zlib.crc32(body):08x}\n".encode() + body
    try:
        write_bytes(path, content)
    except OSError as error:
        raise StorageError(
            f"{len(content)} bytes cannot be written to {path}: {error}. Give Disk(path) a folder"
            " that can be written to and has room, or keep fewer states."
        ) from error


def read_checked(path: Path) -> bytes:
    """What was written.

    Raises:
        StorageError: if the file is not there, cannot be read, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error}. The files of a solve must be left alone; give"
            " Disk(path) a folder that nothing else clears, and make the solve again."
        ) from error
    checksum, _, body = content.removeprefix(_MAGIC).partition(b"\n")
    if not content.startswith(_MAGIC) or checksum != f"{zlib.crc32(body):08x}".encode():
        raise StorageError(
            f"{path} is not what was written ({len(content)} bytes are there, and their checksum"
            " is wrong). Look at the disk; remove the file's folder, or give Disk(path) another,"
            " and make the solve again."
        )
    return body
