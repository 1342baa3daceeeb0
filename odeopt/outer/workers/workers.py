"""The processes that share the tasks of each batch, and how they talk."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError, WorkerError
from odeopt.outer.workers.agreement import Message, compare, read, shorten, texts
from odeopt.tools.arguments import is_positive
from odeopt.tools.shown import Shown, shown

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that worker 0, in whose process the roll may be, waits for the others to read it."""


@final
class Roll:
    """Every worker signs it before each exchange, and says in it why it leaves.

    Args:
        store: what all workers write to (a `torch.distributed.Store`); None to keep no roll.
        rank: the number of this worker.
        count: how many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._exchanges = 0
        if store is not None:
            store.set_timeout(timedelta(seconds=10))  # the store itself may be on a lost machine

    def sign(self) -> None:
        """This worker has come to its next exchange."""
        self._exchanges += 1
        if self._store is not None:
            self._store.set(str(self._rank), str(self._exchanges))

    def missing(self) -> Mapping[int, str]:
        """The workers that are furthest behind this one, and why they left if they said so."""
        if self._store is None:
            return {}
        try:
            signed = {rank: int(self._read(str(rank)) or 0) for rank in range(self._count)}
            last = min(signed.values())
            behind = [n for n, k in signed.items() if k == last < self._exchanges]
            return {rank: self._read(_note(rank)) for rank in behind}
        except RuntimeError:
            return {}

    def leave(self, why: str) -> None:
        """Say why this worker takes part in nothing any more; the first word counts."""
        if self._store is None:
            return
        try:
            if not self._read(_note(self._rank)):
                self._store.set(_note(self._rank), why)
        except RuntimeError:
            pass  # the store is lost, too

    def wait(self) -> None:
        """Until the others have left as well, but for those that are lost; some seconds at most."""
        if self._store is None or self._rank != 0:
            return
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._staying():
            time.sleep(0.05)

    def _staying(self) -> set[int]:
        try:
            others = {rank for rank in range(1, self._count) if not self._read(_note(rank))}
        except RuntimeError:
            return set()
        return others - set(self.missing())

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""


def _note(rank: int) -> str:
    return f"why {rank} left"


@final
class Workers(Shown):
    """The processes of a job, as `torchrun` starts them; one where it did not.

    Each runs the same program with the same data. Given to `spread` or `MetaLearner`, the tasks of
    a batch are divided among them in order, and each gets the whole result. A process group that
    is there already is used; otherwise one is made, with gloo for tensors on the CPU and nccl for
    those on GPUs, and ended with the `with` block (or `close`).

    Example:
        >>> import odeopt
        >>> with odeopt.Workers() as workers:
        ...     print(workers.rank, workers.count)
        0 1

    Args:
        timeout: how many seconds a worker waits for the others before it gives them up; it must
            exceed the time by which one can be slower than another, compilation included.

    Attributes:
        rank: the number of this worker, from 0.
        count: how many there are.
        timeout: see above.

    Raises:
        WorkerError: if the others cannot be reached.
    """

    rank: int = 0
    count: int = 1
    timeout: float = 1800.0
    _group: Any = None
    _owner: bool = False
    _roll: Roll = Roll(None, 0, 1)

    def __init__(self, timeout: float = 1800.0) -> None:
        if isinstance(timeout, bool) or not is_positive(timeout):
            raise InputError(f"timeout is {shown(timeout)}; expected a positive number of seconds.")
        self.timeout = float(timeout)
        if dist.is_available() and dist.is_initialized():
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(timeout=timedelta(seconds=self.timeout))
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self._join()

    @classmethod
    def alone(cls) -> Workers:
        """This process for itself, whatever started it."""
        return object.__new__(cls)

    @override
    def _shown(self) -> Iterator[str]:
        yield f"rank {self.rank} of {self.count}"

    @property
    def device(self) -> torch.device:
        """The GPU of this worker on its machine; the CPU where there is none."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def close(self) -> None:
        """End the process group, if it was made here; does nothing otherwise."""
        if self._owner and dist.is_initialized():
            self._roll.leave("it has ended its part")
            dist.destroy_process_group()
            self._roll = Roll(None, 0, 1)
        self._owner = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        where: TracebackType | None,
    ) -> None:  # fmt: skip
        roll = self._roll
        if error is not None:
            roll.leave(f"it left after {type(error).__name__}: {_first_line(error)}")
        if not isinstance(error, WorkerError):  # one that is lost could not take part in the end
            self.close()
        if error is not None:
            roll.wait()

    def gather(self, what: str, make: Callable[[], T]) -> list[T]:
        """What `make` gives on each worker, in order of rank; small things that can be pickled.

        Raises:
            Exception: what `make` raised here, or for an `OdeoptError` on another worker one of
                its class.
            WorkerError: if another worker met any other error, is lost, or is elsewhere.
        """
        if self.count == 1:
            return [make()]
        message, error = Message.make(what, make)
        received: list[Any] = [None] * self.count
        self._exchange(what, lambda: dist.all_gather_object(received, message, self._group))
        return read(received, error)

    def together(self, what: str, make: Callable[[], T]) -> T:
        """What `make` gives here, once it has gone well everywhere; raises as `gather`."""
        return self.agree(what, f"in {what}", lambda: ({}, make()))

    def from_first(self, what: str, make: Callable[[], T]) -> T:
        """What `make` gives on worker 0, which alone calls it; raises as `gather`."""
        if self.count == 1:
            return make()
        sent: list[Any] = [None]
        error: Exception | None = None
        if self.rank == 0:
            sent[0], error = Message.make(what, make)
        self._exchange(what, lambda: dist.broadcast_object_list(sent, 0, self._group))
        return read(sent, error)[0]

    def check_same(self, when: str, parts: Mapping[str, Any]) -> None:
        """Compare objects by name, tensors in them bit for bit.

        Args:
            when: for messages, e.g. `"before update 3"`.
            parts: anything that can be described: tensors, numbers, functions by their code,
                other objects by their attributes or by what their method `settings()` returns.

        Raises:
            WorkerError: if they are not the same on every worker.
        """
        if self.count > 1:
            self.agree(f"the comparison {when}", when, lambda: (texts(parts), None))

    def agree(self, what: str, when: str, make: Callable[[], tuple[Mapping[str, str], T]]) -> T:
        """What `make` gives here beside texts by name, once these are the same everywhere.

        Raises:
            Exception: as `gather`.
            WorkerError: if the texts differ.
        """
        kept: list[T] = []

        def mine() -> dict[str, str]:
            own, value = make()
            kept.append(value)
            return shorten(own)

        compare(self.gather(what, mine), when)
        return kept[0]

    def add(self, what: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over workers; every worker gets the same bits."""
        sums: list[Tensor] = [torch.empty(0)] * len(tensors)
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            places = [i for i, tensor in enumerate(tensors) if tensor.dtype is dtype]
            shapes = [tensors[i].shape for i in places]
            flat = torch.cat([tensors[i].reshape(-1) for i in places])
            self._exchange(what, lambda flat=flat: dist.all_reduce(flat, group=self._group))
            pieces = flat.split([shape.numel() for shape in shapes])
            for i, piece, shape in zip(places, pieces, shapes, strict=True):
                sums[i] = piece.reshape(shape)
        return sums

    def join(self, what: str, tensors: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """The rows of all workers one after another, bit for bit.

        Args:
            what: what is being done.
            tensors: of shape [own rows, ...], the same shapes and dtypes elsewhere.
            rows: how many rows each worker has.
        """
        blocks = [_as_bytes(tensor) for tensor in tensors]
        widths = [block.shape[1] for block in blocks]
        sent = blocks[0].new_zeros(max(rows), sum(widths))
        sent[: rows[self.rank]] = torch.cat(blocks, dim=1)
        received = [torch.empty_like(sent) for _ in rows]
        self._exchange(what, lambda: dist.all_gather(received, sent, self._group))
        whole = torch.cat([block[:n] for block, n in zip(received, rows, strict=True)])
        return [
            _packed(piece).view(like.dtype).reshape(sum(rows), *like.shape[1:])
            for piece, like in zip(whole.split(widths, dim=1), tensors, strict=True)
        ]

    def _join(self) -> None:
        # it has the group in its default arguments: imported later, by torch.func, it would keep
        # the group's threads alive to the end of the process, which they can abort
        importlib.import_module("torch.distributed.nn.functional")
        timeout, backend = timedelta(seconds=self.timeout), "gloo"
        if torch.cuda.is_available():
            _set_gpu(self.device)
            backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else backend
        try:
            meeting = dist.rendezvous("env://", timeout=timeout)  # pyright: ignore[reportPrivateImportUsage]
            store, self.rank, self.count = next(iter(meeting))
            dist.init_process_group(
                backend, timeout=timeout, rank=self.rank, world_size=self.count,
                store=_part_of(store, "group"),
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise WorkerError(
                f"the workers cannot be joined: {_first_line(error)}. Start the program with"
                " torchrun, e.g. torchrun --standalone --nproc-per-node=2 program.py; between"
                " machines, GLOO_SOCKET_IFNAME names the network interface."
            ) from error
        self._owner = True
        self._roll = Roll(_part_of(store, "roll"), self.rank, self.count)
        self.gather("the start", lambda: None)

    def _exchange(self, what: str, operation: Callable[[], object]) -> None:
        try:
            self._roll.sign()
            operation()
        except RuntimeError as error:
            lost = self._lost(what)
            self._roll.leave(f"it was left alone: {lost}")
            self._roll.wait()
            raise WorkerError(
                f"{lost}. Start the program again with torchrun, with as many workers as you have;"
                " a MetaLearner with a folder goes on from its last checkpoint after restore()."
            ) from error

    def _lost(self, what: str) -> str:
        """Who did not come to an exchange, and why as far as can be told."""
        missing = self._roll.missing()
        who = " and ".join(f"worker {rank}" for rank in missing) or "another worker"
        lost = f"it was killed, lost its machine, or took more than timeout={self.timeout:g}"
        why = "; ".join(filter(None, missing.values())) or f"{lost} seconds longer"
        return f"{who} of {self.count} did not answer worker {self.rank} in {what!r}: {why}"


def _part_of(store: Any, name: str) -> Any:
    return dist.PrefixStore(f"odeopt/{name}", store)  # pyright: ignore[reportPrivateImportUsage]


def _set_gpu(device: torch.device) -> None:
    gpus = torch.cuda.device_count()
    if device.index >= gpus:
        raise InputError(
            f"there is a worker {device.index} on this machine, which has {gpus} GPUs: start with"
            f" --nproc-per-node={gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES=''."
        )
    torch.cuda.set_device(device)


def _as_bytes(tensor: Tensor) -> Tensor:
    """Shape [rows, bytes]."""
    width = tensor.shape[1:].numel()
    return _packed(tensor).view(torch.uint8).reshape(tensor.shape[0], width * tensor.element_size())


def _packed(tensor: Tensor) -> Tensor:
    """A flat copy; one that is not copied may have strides that cannot be viewed as bytes."""
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
