"""Files that are either the old version or the new one, never a part of either."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file through a temporary one in the same folder.

    Args:
        path: The file to create or replace; missing parent folders are made.
        content: Its whole new content.

    Returns:
        The path written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)  # less what the umask takes away
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file atomically."""
    return write_bytes(path, text.encode("utf-8"))


def name_without_temporary(name: str) -> str:
    """The name of the file that a temporary one was to become; other names as they are."""
    temporary = _TEMPORARY.fullmatch(name)
    return name if temporary is None else temporary[1]
