"""What a call costs: seconds, bytes of live tensors, and resident memory.

Bytes of live tensors on a CPU come from the memory events of torch's profiler, which its
allocator reports itself. A `TorchDispatchMode` that watches storages through weak references
would be the other way, but it does not see what compiled kernels and the inside of operators
allocate. The recording of operators is switched off, so that only allocations are kept; even so
it slows a run down: measure time and resident memory in runs of their own. On CUDA the
allocator's own counters are read.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import psutil
import torch

MIB, GIB = 2**20, 2**30

T = TypeVar("T")

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each profile writes to standard error


def once(
    run: Callable[[], object], device: torch.device, clock: Callable[[], float] = perf_counter
) -> float:
    """Seconds of one call, by a clock."""
    _wait(device)
    begin = clock()
    run()
    _wait(device)
    return clock() - begin


def in_turn(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device,
    limit: float = math.inf, clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each by a clock, called once in every round, garbage collected before.

    There is one round at least, and none that would end later than about `limit` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    last = spent = 0.0
    for number in range(rounds):
        if number and spent + last >= limit:
            break
        for name, run in runs.items():
            gc.collect()
            seconds[name].append(once(run, device, clock))
        last = sum(values[-1] for values in seconds.values())
        spent += last
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_live_bytes(
    run: Callable[[], object], device: torch.device, recorder: LivePeak | None = None
) -> int:
    """The most bytes of tensors alive at one time during a call, above those alive before it.

    On a CPU it must stay in one thread; a recorder may be given, which the call ticks.
    """
    if device.type != "cuda":
        with recorder or LivePeak() as peak:
            run()
        return peak.bytes
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    _wait(device)
    return torch.cuda.max_memory_allocated(device) - before


class LivePeak:
    """The most bytes of tensors alive at one time while it is entered, on a CPU, in one thread.

    The record of every allocation takes hundreds of times as much memory as it has events: in a
    long run call `tick` now and then, in every step say, which evaluates the record and begins a
    new one after so many calls. While it is not entered that does nothing.

    Args:
        ticks: After how many calls of `tick` a new record begins.
    """

    def __init__(self, ticks: int = 200) -> None:
        self._every, self._entered = ticks, False
        self._live = self.bytes = self._ticks = 0
        self._open = ExitStack()

    def __enter__(self) -> LivePeak:
        self._live = self.bytes = self._ticks = 0
        self._entered = True
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._end()

    def tick(self) -> None:
        """A part of the run is over."""
        self._ticks += self._entered
        if self._entered and self._ticks % self._every == 0:
            self._end()
            self._begin()

    def ticking(self, stream: Callable[[int], T]) -> Callable[[int], T]:
        """A stream that ticks at every batch."""

        def batch(k: int) -> T:
            self.tick()
            return stream(k)

        return batch

    def _begin(self) -> None:
        profile = torch.autograd.profiler.profile(profile_memory=True)
        self._record = self._open.enter_context(profile)
        self._open.enter_context(_no_operators())

    def _end(self) -> None:
        self._open.close()
        record = self._record.kineto_results
        assert record is not None, "the profiler has ended"
        events = [(e.start_ns(), e.nbytes()) for e in record.events() if e.name() == "[memory]"]
        events.sort(key=lambda event: event[0])  # stable: events of one instant keep their order
        running = list(accumulate((size for _, size in events), initial=self._live))
        self._live, self.bytes = running[-1], max(self.bytes, *running)


@contextmanager
def _no_operators() -> Iterator[None]:
    """Keeps operators out of the profile of this thread, which would grow a hundredfold."""
    switch = torch._C._autograd._enable_record_function  # noqa: SLF001  (there is no public one)
    switch(False)
    try:
        yield
    finally:
        switch(True)


class ResidentPeak:
    """Growth of the resident memory of this process from now on.

    Linux keeps the peak per address space (VmHWM) and lets a process set it back, so that the
    growth is that above the size at the start. Elsewhere `getrusage` has only the peak since the
    process began, and the growth is that above the earlier peak: a lower bound.
    """

    def __init__(self) -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back, see proc(5)
        except OSError:
            self._start = _peak_resident()
        else:
            self._start = resident()

    def bytes(self) -> int:
        """The growth so far."""
        return max(0, _peak_resident() - self._start)


def resident() -> int:
    """Bytes of this process in memory."""
    return psutil.Process().memory_info().rss


def _peak_resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource  # noqa: PLC0415  (not on every platform)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def at_most(extra: int, device: torch.device) -> Iterator[None]:
    """Makes allocations fail that would need more than `extra` bytes beyond what is in use.

    On a CPU the address space is limited, on Linux only; on CUDA the share of the device.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = (torch.cuda.memory_reserved(device) + extra) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
        yield
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    elif sys.platform == "linux":
        process = psutil.Process()
        soft, hard = process.rlimit(psutil.RLIMIT_AS)
        limit = process.memory_info().vms + extra
        bounded = limit if hard == psutil.RLIM_INFINITY else min(limit, hard)
        process.rlimit(psutil.RLIMIT_AS, (bounded, hard))
        try:
            yield
        finally:
            process.rlimit(psutil.RLIMIT_AS, (soft, hard))
    else:
        yield


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
