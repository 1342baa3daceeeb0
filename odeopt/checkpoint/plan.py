"""What a memory budget was spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from odeopt.checkpoint.sizes import format_bytes


@dataclass(frozen=True)
class Plan:
    """What a `MemoryBudget` chose, and what it costs; `str` of it is text to read.

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

    def __str__(self) -> str:
        places = ", ".join(f"{count} on {tier}" for tier, count in self.slots.items())
        share = self.replayed_steps / max(self.steps, 1)
        used = {"device": self.device_bytes, "host": self.host_bytes, "disk": self.disk_bytes}
        bytes_used = ", ".join(f"{format_bytes(n)} on {tier}" for tier, n in used.items() if n)
        return (
            f"{self.schedule} for {self.steps} steps with states of"
            f" {format_bytes(self.state_bytes)}\n"
            f"slots:          {places}\n"
            f"kept at most:   {self.stored_states} states, {bytes_used or '0 B'}\n"
            f"replayed steps: {self.replayed_steps} ({share:.2f} for each step)"
        )
