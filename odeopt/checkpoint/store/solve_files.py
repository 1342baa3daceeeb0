"""The files that a solve makes, by their exact names; others are never touched."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odeopt.checkpoint.store.checked_file import of_solve
from odeopt.errors import StorageError
from odeopt.tools.files import name_without_temporary
from odeopt.tools.packing import Packing, pack, raw_bytes

LOCK = "solve.lock"

ROOT, FORWARD, BACKWARD = "solve.progress", "forward.progress", "backward.progress"
"""Which solve it is, and how far each of its sweeps has come."""

_STATE = of_solve("state")
_STATE_NAME = re.compile(r"state-(\d{9,})")


def state_file(folder: Path, index: int) -> Path:
    """Where the state of an index is."""
    return folder / f"state-{index:09d}"


def states(folder: Path) -> dict[int, Path]:
    """The files of states in a folder, by index."""
    matches = ((_STATE_NAME.fullmatch(path.name), path) for path in _regular(folder))
    return {int(match[1]): path for match, path in matches if match is not None}


def remove_own(folder: Path) -> None:
    """Remove every file that a solve has made there, except for the lock."""
    for path in _regular(folder):
        name = name_without_temporary(path.name)
        if name in (ROOT, FORWARD, BACKWARD) or _STATE_NAME.fullmatch(name):
            path.unlink(missing_ok=True)


def _regular(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        regular = [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    return (Path(entry.path) for entry in regular)


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
    own = Label(*head["label"])
    if own != label:
        whose = "of another solve" if own.solve != label.solve else f"number {own.number}"
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
