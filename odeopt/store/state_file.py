"""One state in one file, with a checksum."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeopt.errors import StorageError
from odeopt.files import write_bytes
from odeopt.store.packing import Packing, pack

_MAGIC = b"odeopt state 1 "


def write_state(path: Path, state: Tensor) -> int:
    """Write a state atomically.

    Returns:
        The size of the file in bytes.

    Raises:
        StorageError: if it cannot be written.
    """
    block, packing = pack(state)
    head = {
        "dtype": str(block.dtype).removeprefix("torch."),
        "block": list(block.shape),
        "shape": packing.shape,
        "order": packing.order,
    }
    raw = block.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
    body = json.dumps(head).encode() + b"\n" + raw
    content = _MAGIC + f"{zlib.crc32(body):08x}\n".encode() + body
    try:
        write_bytes(path, content)
    except OSError as error:
        raise StorageError(
            f"a kept state of {len(content)} bytes cannot be written to {path}: {error}. Give"
            " Disk(path) a folder that can be written to and has room, or keep fewer states."
        ) from error
    return len(content)


def read_state(path: Path, device: torch.device) -> Tensor:
    """The state in a file.

    Raises:
        StorageError: if the file is not there, cannot be read, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"the kept state in {path} cannot be read: {error}. Files of a solve that is running"
            " must be left alone; give Disk(path) a folder that nothing else clears."
        ) from error
    checksum, _, body = content.removeprefix(_MAGIC).partition(b"\n")
    if not content.startswith(_MAGIC) or checksum != f"{zlib.crc32(body):08x}".encode():
        raise StorageError(
            f"the kept state in {path} is not what was written ({len(content)} bytes are there,"
            " and their checksum is wrong). Look at the disk, or give Disk(path) another folder;"
            " the solve has to be made again."
        )
    line, _, raw = body.partition(b"\n")
    return _decode(json.loads(line), raw).to(device)


def _decode(head: dict[str, Any], raw: bytes) -> Tensor:
    packing = Packing(tuple(head["shape"]), tuple(head["order"]))
    dtype = getattr(torch, head["dtype"])
    if not raw:
        return packing.unpack(torch.empty(head["block"], dtype=dtype))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    block = flat.clone().view(dtype).reshape(head["block"])  # cloned: aligned as torch wants it
    return packing.unpack(block)
