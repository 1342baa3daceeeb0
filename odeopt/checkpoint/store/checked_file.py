"""Files with a checksum, each of a kind, written whole or not at all."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from odeopt.errors import StorageError
from odeopt.tools.files import write_bytes

FORMAT = "2"
"""Of all files; one of another format is not read."""

_LONGEST_HEADER = 80


@final
@dataclass(frozen=True)
class FileKind:
    """What a file holds, and what to do where that fails.

    Attributes:
        name: one word.
        unwritable: what to do if it cannot be written.
        unreadable: what to do if it is lost or damaged.
    """

    name: str
    unwritable: str
    unreadable: str

    def write(self, path: Path, body: bytes) -> bytes:
        """Write a file atomically.

        Returns:
            Its header, which has the checksum.

        Raises:
            StorageError: if it cannot be written.
        """
        header = f"odeopt {FORMAT} {self.name} {zlib.crc32(body):08x}\n".encode()
        try:
            write_bytes(path, header + body)
        except OSError as error:
            raise StorageError(
                f"{len(header) + len(body)} bytes cannot be written to {path}: {error}."
                f" {self.unwritable}"
            ) from error
        return header

    def read(self, path: Path) -> tuple[bytes, bytes]:
        """The header, and what was written.

        Raises:
            StorageError: if the file is not there, cannot be read, or is not what was written.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error}. {self.unreadable}") from error
        header, _, body = content.partition(b"\n")
        doubt = self._doubt(header, body)
        if doubt:
            raise StorageError(f"{path} is not what was written: {doubt}. {self.unreadable}")
        return header + b"\n", body

    def save(self, path: Path, content: dict[str, Any]) -> bytes:
        """Write tensors and plain data; returns and raises as `write`."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return self.write(path, buffer.getvalue())

    def load(self, path: Path, device: torch.device | str) -> tuple[bytes, dict[str, Any]]:
        """The header, and what was saved, on a device; raises as `read`."""
        header, body = self.read(path)
        try:
            return header, torch.load(io.BytesIO(body), map_location=device, weights_only=True)
        except Exception as error:  # whatever another version of torch has written
            reason = str(error).partition("\n")[0]
            raise StorageError(
                f"{path} cannot be read by torch {torch.__version__}: {reason}. Use the version of"
                " torch that it was written with."
            ) from error

    def _doubt(self, header: bytes, body: bytes) -> str:
        """Why it is not a file of this kind; empty if it is one."""
        words = header[:_LONGEST_HEADER].decode("latin-1").split(" ")
        if len(words) != 4 or words[0] != "odeopt":
            return "it does not begin as files of this version of odeopt do"
        _, version, kind, checksum = words
        if version != FORMAT:
            return f"it has the format {version!r}, and this version of odeopt reads {FORMAT!r}"
        if kind != self.name:
            return f"it holds a {kind!r}, not a {self.name!r}"
        if checksum != f"{zlib.crc32(body):08x}":
            size = len(header) + 1 + len(body)
            return f"{size} bytes are there, and their checksum is wrong"
        return ""


def read_header(path: Path) -> bytes | None:
    """The first line of a file, which tells two contents apart; None if there is no file.

    Raises:
        StorageError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.readline(_LONGEST_HEADER)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}. Look at the disk.") from error


def of_solve(name: str) -> FileKind:
    """A kind of file in the folder of a solve."""
    return FileKind(
        name,
        "Give Disk(path) a folder that can be written to and has room, or keep fewer states.",
        "The files of a solve must be left alone. Look at the disk; remove the file's folder, or"
        " give Disk(path) another that nothing else clears, and make the solve again.",
    )
