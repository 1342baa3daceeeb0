"""How much memory a process may still take, and how much a graph holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from odeopt.errors import CompatibilityError

T = TypeVar("T")

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device.

    In the memory of the host that is what the system has left, or what the limits of the process
    (`ulimit`, control groups) leave it, if that is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(min(psutil.virtual_memory().available, *_left_by_limits(), *_left_by_cgroups()), 0)


def _left_by_limits() -> Iterator[int]:
    process: Any = psutil.Process()
    used: Any = process.memory_info()
    for name, bytes_used in (("RLIMIT_AS", used.vms), ("RLIMIT_DATA", getattr(used, "data", 0))):
        if hasattr(psutil, name):  # not on every system
            soft, _ = process.rlimit(getattr(psutil, name))
            if soft >= 0:
                yield soft - bytes_used
    yield 2**62


def _left_by_cgroups() -> Iterator[int]:
    """What the limits of the process's control group and those around it leave (version 2)."""
    yield 2**62
    try:
        own = _OWN_CGROUP.read_text().rpartition("0::/")[2].strip()
    except OSError:
        return
    group = _CGROUPS / own
    for folder in (group, *group.parents):
        if folder.is_relative_to(_CGROUPS):
            yield from _left_by_cgroup(folder)


def _left_by_cgroup(folder: Path) -> Iterator[int]:
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is no limit
        return
    yield limit - used + int(stat.get("inactive_file", 0))


class GraphSize(torch.autograd.graph.saved_tensors_hooks):
    """A block whose graph is measured: the bytes of the tensors that autograd saves.

    Args:
        shared: tensors that are alive anyway, which do not count.
    """

    def __init__(self, shared: Iterable[Tensor]) -> None:
        super().__init__(self._note, lambda saved: saved)
        self._shared = {_storage(leaf) for leaf in shared}
        self._sizes: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """The size so far."""
        return sum(self._sizes.values())

    def _note(self, saved: Tensor) -> Tensor:
        place = _storage(saved)
        if place not in self._shared:
            self._sizes[place] = saved.untyped_storage().nbytes()
        return saved.detach()  # a result would hold its own graph


def measured(make: Callable[[], T], shared: Iterable[Tensor]) -> tuple[T, int | None]:
    """What `make` makes, and the size of its graph; None where torch does not show what is in it.

    That is so for a loss that uses `torch.func` itself; it is then made without looking.
    """
    size = GraphSize(shared)
    try:
        with size:
            made = make()
    except (RuntimeError, CompatibilityError) as error:
        if "saved tensor hooks" not in str(error):
            raise
        return make(), None
    return made, size.nbytes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
