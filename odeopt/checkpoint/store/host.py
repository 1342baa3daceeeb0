"""The tier of states in the memory of the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.store.base import Shelf, Tier
from odeopt.tools.packing import Packing, pack


@final
@dataclass(frozen=True)
class Host(Tier):
    """Kept states go to the memory of the host; for a solve on the CPU they are there already.

    From a CUDA device they are copied into pinned memory on a stream of their own while the solve
    goes on, and in the backward sweep the next one needed is fetched while the one before it is
    in use. That takes up to two more states on the device: one on its way there, one on its way
    back.

    Cost: a state of d numbers of b bytes takes about d b / (25 GB/s) over PCIe 4; where that is
    less than one gradient evaluation, keeping all states here is cheaper than any replay.
    """

    kind: ClassVar[str] = "host"

    @override
    def open(self) -> Shelf:
        return HostShelf()


class _Copy(NamedTuple):
    """A state in host memory."""

    block: Tensor
    packing: Packing
    device: torch.device
    written: torch.cuda.Event | None
    """When the copy is complete; None if it was made at once."""


class _Fetched(NamedTuple):
    """A state on its way back to the device."""

    state: Tensor
    block: Tensor
    ready: torch.cuda.Event


class HostShelf(Shelf):
    """States in host memory, in pinned copies if they come from CUDA."""

    def __init__(self) -> None:
        self._copies: dict[int, _Copy] = {}
        self._fetched: dict[int, _Fetched] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._last: torch.cuda.Event | None = None

    @override
    def put(self, index: int, state: Tensor) -> None:
        self._fetched.pop(index, None)
        if state.device.type == "cpu":
            packing = Packing(tuple(state.shape), tuple(range(state.ndim)))
            self._copies[index] = _Copy(state, packing, state.device, None)
        elif state.device.type == "cuda":
            self._send(index, state)
        else:
            block, packing = pack(state)
            self._copies[index] = _Copy(block.cpu(), packing, state.device, None)

    @override
    def get(self, index: int) -> Tensor:
        copy = self._copies[index]
        if copy.device.type == "cpu":
            return copy.block
        if copy.device.type != "cuda":
            return copy.packing.unpack(copy.block.to(copy.device))
        fetched = self._fetched.pop(index, None) or self._fetch(copy)
        current = torch.cuda.current_stream(copy.device)
        current.wait_event(fetched.ready)
        fetched.block.record_stream(current)  # it was allocated on the other stream
        return fetched.state

    @override
    def drop(self, index: int) -> None:
        del self._copies[index]
        self._fetched.pop(index, None)

    @override
    def prefetch(self, index: int) -> None:
        copy = self._copies.get(index)
        if copy is not None and copy.device.type == "cuda" and index not in self._fetched:
            self._fetched = {index: self._fetch(copy)}  # one at a time

    @override
    def close(self, done: bool) -> None:
        self._copies.clear()
        self._fetched.clear()

    def _send(self, index: int, state: Tensor) -> None:
        """Copy to pinned memory behind the solve's back, one copy after another.

        The host waits for the copy before this one, so that at most one state beside this one
        waits on the device.
        """
        if self._last is not None:
            self._last.synchronize()
        block, packing = pack(state)
        stream = self._stream(state.device)
        stream.wait_stream(torch.cuda.current_stream(state.device))
        target = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            target.copy_(block, non_blocking=True)
            written = _mark(stream)
        block.record_stream(stream)  # not to be reused before the copy is complete
        self._last = written
        self._copies[index] = _Copy(target, packing, state.device, written)

    def _fetch(self, copy: _Copy) -> _Fetched:
        stream = self._stream(copy.device)
        if copy.written is not None:
            stream.wait_event(copy.written)
        with torch.cuda.stream(stream):
            block = copy.block.to(copy.device, non_blocking=True)
            ready = _mark(stream)
        return _Fetched(copy.packing.unpack(block), block, ready)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event that happens when all that is on the stream now has been done."""
    event = torch.cuda.Event()
    event.record(stream)
    return event
