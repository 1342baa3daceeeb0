"""Seeds that depend on integers alone, by arithmetic that no version of anything changes."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

_LIMIT = 2**63


def mix(seed: int, index: int) -> int:
    """A seed for the index-th piece of what one seed fixes."""
    return (seed * 1_000_003 + index) % _LIMIT


def generator(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU for the index-th piece."""
    return torch.Generator().manual_seed(mix(seed, index))


_TURN = threading.RLock()
"""Torch's generators belong to the process: threads that draw take turns."""


class _Open(threading.local):
    """The device of each `seeded` block that is open in this thread."""

    def __init__(self) -> None:
        self.devices: list[torch.device] = []


_open = _Open()


@contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None]:
    """Torch's own generators start from a seed inside, and go on as before after it.

    Other threads that come to such a block wait. Numbers that another thread draws without one
    are missing here; the sweeps notice it, since a step then leads elsewhere when it is made again.
    """
    devices = [device] if device.type == "cuda" else []
    with _TURN, torch.random.fork_rng(devices=devices):
        # torch.manual_seed would queue a call, with its stack trace, for each CUDA device to come
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        _open.devices.append(device)
        try:
            yield
        finally:
            _open.devices.pop()


def taking_turns() -> AbstractContextManager[object]:
    """A block in which no other thread is in a `seeded` one."""
    return _TURN


def random_state() -> tuple[Tensor, ...] | None:
    """Where torch's generators are in a `seeded` block; None outside, where nothing may draw."""
    if not _open.devices:
        return None
    return generator_states(_open.devices[-1])


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """Where torch's generators are that a computation on a device draws from."""
    extra = (torch.cuda.get_rng_state(device),) if device.type == "cuda" else ()
    return torch.get_rng_state(), *extra


def restore_random_state(state: tuple[Tensor, ...] | None) -> None:
    """Put torch's generators back to where they were; None is no state and changes nothing."""
    if state is None:
        return
    torch.set_rng_state(state[0])
    for own in state[1:]:
        torch.cuda.set_rng_state(own, _open.devices[-1])


def same_random_state(first: tuple[Tensor, ...] | None, second: tuple[Tensor, ...] | None) -> bool:
    """Whether nothing has been drawn between two looks at torch's generators."""
    if first is None or second is None:
        return first is second
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
