"""One state in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.checkpoint.store.checked_file import of_solve
from odeopt.errors import StorageError
from odeopt.tools.packing import Packing, pack, raw_bytes

_STATE = of_solve("state")


class Label(NamedTuple):
    """Which state it is."""

    solve: str
    """A name or a digest of the solve that it belongs to."""
    number: int
    """Its index."""


def write_state(path: Path, state: Tensor, label: Label) -> None:
    """Write a state atomically.

    Raises:
        StorageError: if it cannot be written.
    """
    block, packing = pack(state)
    head = {
        "label": label,
        "dtype": str(block.dtype).removeprefix("torch."),
        "block": list(block.shape),
        "shape": packing.shape,
        "order": packing.order,
    }
    _STATE.write(path, json.dumps(head).encode() + b"\n" + raw_bytes(block))


def read_state(path: Path, device: torch.device, label: Label) -> Tensor:
    """The state in a file.

    Raises:
        StorageError: if the file is not there, cannot be read, is not what was written, or holds
            another state.
    """
    _, body = _STATE.read(path)
    line, _, raw = body.partition(b"\n")
    head = json.loads(line)
    found = Label(*head["label"])
    if found != label:
        whose = "of another solve" if found.solve != label.solve else f"number {found.number}"
        raise StorageError(
            f"{path} holds a state {whose}; expected number {label.number} of this one."
            f" {_STATE.unreadable}"
        )
    return _decode(head, raw).to(device)


def _decode(head: dict[str, Any], raw: bytes) -> Tensor:
    packing = Packing(tuple(head["shape"]), tuple(head["order"]))
    dtype = getattr(torch, head["dtype"])
    if not raw:
        return packing.unpack(torch.empty(head["block"], dtype=dtype))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    block = flat.clone().view(dtype).reshape(head["block"])  # cloned: aligned as torch wants it
    return packing.unpack(block)
