"""Numbers of bytes as people write them, and what a memory budget was spent on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from odeopt.errors import InputError
from odeopt.tools.shown import Shown, shown

_UNITS = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_FORM = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})\s*")


def parse_bytes(value: object, what: str) -> int:
    """A number of bytes from an integer or text such as "512MiB".

    Raises:
        InputError: if it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _FORM.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InputError(
            f"{what} is {shown(value)}; expected a number of bytes, or text with a unit such as"
            f" '512MiB' or '2GB' (units: {', '.join(_UNITS)})."
        )
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(count: int) -> str:
    """A number of bytes in the largest binary unit of which it is at least one."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:.4g} {unit}"
    return f"{count} B"


@dataclass(frozen=True)
class Plan(Shown):
    """What `Graphs` or a `MemoryBudget` chose, and what it costs; `str` of it is text to read.

    Attributes:
        schedule: what is kept: "every state", or a schedule by name.
        steps: the steps that are reversed.
        state_bytes: the size of one state, of all tasks together.
        slots: how many states may be kept in each tier.
        stored_states: the most states kept at one time.
        stored_bytes: their size.
        device_bytes: the most bytes on the device at one time.
        host_bytes: likewise in the memory of the host.
        disk_bytes: likewise on disk.
        replayed_steps: steps made again in the backward sweep.
        graphs: steps whose graphs were kept when the forward sweep ended. Steps that are made again
            may keep theirs, too.
    """

    schedule: str
    steps: int
    state_bytes: int
    slots: Mapping[str, int]
    stored_states: int
    stored_bytes: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    replayed_steps: int
    graphs: int = 0

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {tier}" for tier, count in self.slots.items())
        share = self.replayed_steps / max(self.steps, 1)
        used = {"device": self.device_bytes, "host": self.host_bytes, "disk": self.disk_bytes}
        bytes_used = ", ".join(f"{format_bytes(n)} on {tier}" for tier, n in used.items() if n)
        graphs = f"graphs kept:    {self.graphs}, of the last steps\n" if self.graphs else ""
        return (
            f"{self.schedule} for {self.steps} steps with states of"
            f" {format_bytes(self.state_bytes)}\n"
            f"slots:          {places}\n"
            f"kept at most:   {self.stored_states} states, {bytes_used or '0 B'}\n"
            f"{graphs}replayed steps: {self.replayed_steps} ({share:.2f} for each step)"
        )
