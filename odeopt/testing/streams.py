"""The conformance suite of streams."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odeopt.errors import CompatibilityError
from odeopt.inner.stream import Stream
from odeopt.tools import tree
from odeopt.tools.describing import describe
from odeopt.tools.seeds import seeded
from odeopt.tools.types import PyTree


def check_stream(stream: Stream, steps: int = 20, device: torch.device | None = None) -> None:
    """Check a stream; raises AssertionError with what is wrong.

    The batch of a step is the same whenever, in whatever order and in whichever thread it is
    asked for; a batch stays as it is when others are made; nobody else's random numbers are
    drawn; all batches have one structure, with the same shapes, dtypes and devices; there is one
    for each step that `length` promises. A copy by pickle, where one can be made, gives the same
    batches; where the stream can be described, so that a solve is recognised, its use does not
    change the description.

    Args:
        stream: an instance.
        steps: how many batches to look at; the last one of a stream with an end is one of them.
        device: of the random numbers of a stream with a seed.
    """
    assert isinstance(stream, Stream), f"{stream!r} is not a Stream"  # pyright: ignore
    read = _reader(stream, device or torch.device("cpu"))
    indices = _indices(stream, steps)
    described = _description(stream)
    _check_random_state(read, indices[0])
    found, kept = _read_all(read, indices)
    _check_structure(indices, found)
    for k, batch, copy in zip(indices, found, kept, strict=True):
        assert _same(batch, copy), (
            f"batch {k} changes when other batches are made: make a new tensor for each"
        )
    _check_order(read, indices, kept)
    _check_threads(read, indices, kept)
    _check_pickle(stream, read, indices[0])
    assert _description(stream) == described, (
        "the description of the stream, by which a solve is recognised, changes when batches are"
        " made: give what counts or caches something a method settings()"
    )


_Read = Callable[[int], PyTree]


def _reader(stream: Stream, device: torch.device) -> _Read:
    """The batch of a step as a solve asks for it."""

    def read(k: int) -> PyTree:
        seed = stream.step_seed(k)
        try:
            with nullcontext() if seed is None else seeded(seed, device):
                return stream(k)
        except Exception as error:  # whatever a stream raises
            raise AssertionError(
                f"batch {k} cannot be made, though length is {stream.length}: {error!r}"
            ) from error

    return read


def _indices(stream: Stream, steps: int) -> list[int]:
    length: Any = stream.length
    if length is None:
        return [*range(steps), 10_007]
    is_count = isinstance(length, int) and length > 0
    assert is_count, f"length is {length!r}; expected None or a positive integer"
    return sorted({*range(min(steps, length)), length - 1})


def _leaves(batch: PyTree) -> list[Any]:
    return tree.pytree.tree_leaves(batch)


def _same(first: PyTree, second: PyTree) -> bool:
    pairs = zip(_leaves(first), _leaves(second), strict=False)
    alike = tree.structure(first) == tree.structure(second)
    return alike and all(_same_leaf(a, b) for a, b in pairs)


def _same_leaf(first: Any, second: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return bool(first is second or first == second)
    alike = _kind(first) == _kind(second)
    return alike and bool(torch.isclose(first, second, rtol=0, atol=0, equal_nan=True).all())


def _kind(leaf: Any) -> tuple[object, ...]:
    if isinstance(leaf, Tensor):
        return "tensor", tuple(leaf.shape), leaf.dtype, leaf.device
    return type(leaf).__name__, leaf


def _check_random_state(read: _Read, k: int) -> None:
    before = _random_states()
    read(k)
    for name, state in _random_states().items():
        assert state == before[name], (
            f"making a batch draws random numbers of {name}, which others use: take them from a"
            " generator of your own, started from the step's index"
        )


def _random_states() -> dict[str, Any]:
    found = {
        "torch": torch.get_rng_state().tolist(),
        "Python's random": random.getstate(),
        "numpy": str(np.random.get_state(legacy=False)),
    }
    if torch.cuda.is_available():
        found["torch.cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return found


def _read_all(read: _Read, indices: Sequence[int]) -> tuple[list[PyTree], list[PyTree]]:
    """The batches, and copies of them that were made before the next one was asked for."""
    found: list[PyTree] = []
    kept: list[PyTree] = []
    for k in indices:
        found.append(read(k))
        kept.append(tree.map_tensors(Tensor.clone, found[-1]))
    return found, kept


def _check_structure(indices: Sequence[int], batches: Sequence[PyTree]) -> None:
    first, layout = batches[0], tree.structure(batches[0])
    for k, batch in zip(indices, batches, strict=True):
        own = tree.structure(batch)
        assert own == layout, f"batch {k} has the structure {own}, but batch 0 has {layout}"
        for leaf, other in zip(_leaves(batch), _leaves(first), strict=True):
            assert _kind(leaf) == _kind(other), (
                f"batch {k} has {_kind(leaf)} where batch 0 has {_kind(other)}"
            )
            assert not isinstance(leaf, Tensor) or not leaf.requires_grad, (
                f"a tensor of batch {k} requires grad, but batches of a stream carry no gradient"
            )


def _check_order(read: _Read, indices: Sequence[int], kept: Sequence[PyTree]) -> None:
    for k, expected in reversed(list(zip(indices, kept, strict=True))):
        assert _same(read(k), expected), (
            f"batch {k} differs when it is asked for again: it must depend on the index alone"
        )


def _check_threads(read: _Read, indices: Sequence[int], kept: Sequence[PyTree]) -> None:
    count = len(indices)
    places = [(place + shift) % count for shift in range(4) for place in range(count)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda place: read(indices[place]), places))
    for place, batch in zip(places, batches, strict=True):
        assert _same(batch, kept[place]), (
            f"batch {indices[place]} differs when several threads ask for batches at once"
        )


def _check_pickle(stream: Stream, read: _Read, k: int) -> None:
    try:
        content = pickle.dumps(stream)
    except Exception:  # a function defined inside another, for one
        return
    again = _reader(pickle.loads(content), torch.device("cpu"))
    assert _same(again(k), read(k)), "a copy of the stream by pickle gives another batch"


def _description(stream: Stream) -> str | None:
    try:
        return describe(stream, "the stream")
    except CompatibilityError:  # it cannot be resumed with
        return None
