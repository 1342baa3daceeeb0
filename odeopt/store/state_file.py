"""One state in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odeopt.store.checked_file import read_checked, write_checked
from odeopt.store.packing import Packing, pack


def write_state(path: Path, state: Tensor) -> None:
    """Write a state atomically.

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
    write_checked(path, json.dumps(head).encode() + b"\n" + raw_bytes(block))


def read_state(path: Path, device: torch.device) -> Tensor:
    """The state in a file.

    Raises:
        StorageError: if the file is not there, cannot be read, or is not what was written.
    """
    line, _, raw = read_checked(path).partition(b"\n")
    return _decode(json.loads(line), raw).to(device)


def raw_bytes(block: Tensor) -> bytes:
    """The numbers of a contiguous tensor as they are in memory."""
    return block.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _decode(head: dict[str, Any], raw: bytes) -> Tensor:
    packing = Packing(tuple(head["shape"]), tuple(head["order"]))
    dtype = getattr(torch, head["dtype"])
    if not raw:
        return packing.unpack(torch.empty(head["block"], dtype=dtype))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    block = flat.clone().view(dtype).reshape(head["block"])  # cloned: aligned as torch wants it
    return packing.unpack(block)
