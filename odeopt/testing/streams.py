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
from odeopt.tools.packing import digest_values
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
    device = device or torch.device("cpu")
    read = _reader(stream, device)
    indices = _indices(stream, steps)
    described = _description(stream)
    _check_random_state(read, indices[0])
    batches: list[PyTree] = []
    contents: list[_Content] = []
    for k in indices:
        batches.append(read(k))
        contents.append(_content(batches[-1]))
    _check_structure(indices, batches)
    for k, batch, content in zip(indices, batches, contents, strict=True):
        assert _content(batch) == content, (
            f"batch {k} changes when other batches are made: make a new tensor for each"
        )
    for k, content in reversed(list(zip(indices, contents, strict=True))):
        assert _content(read(k)) == content, (
            f"batch {k} differs when it is asked for again: it must depend on the index alone"
        )
    _check_threads(read, indices, contents)
    _check_pickle(stream, indices[0], contents[0], device)
    assert _description(stream) == described, (
        "the description of the stream, by which a solve is recognised, changes when batches are"
        " made: give what counts or caches something a method settings()"
    )


_Read = Callable[[int], PyTree]
_Content = tuple[object, ...]


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


def _kind(leaf: Any) -> tuple[object, ...]:
    if isinstance(leaf, Tensor):
        return "tensor", tuple(leaf.shape), leaf.dtype, leaf.device
    by_identity = type(leaf).__eq__ is object.__eq__
    return type(leaf).__name__, None if by_identity else leaf


def _content(batch: PyTree) -> _Content:
    """The structure of a batch, and what each of its leaves is at this moment."""
    leaves = tree.leaves(batch)
    values = [digest_values([leaf]) if isinstance(leaf, Tensor) else "" for leaf in leaves]
    return tree.structure(batch), [_kind(leaf) for leaf in leaves], values


def _check_random_state(read: _Read, k: int) -> None:
    before = _random_states()
    read(k)
    for name, state in _random_states().items():
        assert state == before[name], (
            f"making a batch draws random numbers of {name}, which others use: take them from a"
            " generator of your own, started from the step's index"
        )


def _random_states() -> dict[str, Any]:
    states = {
        "torch": torch.get_rng_state().tolist(),
        "Python's random": random.getstate(),
        "numpy": str(np.random.get_state(legacy=False)),
    }
    if torch.cuda.is_available():
        states["torch.cuda"] = [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states


def _check_structure(indices: Sequence[int], batches: Sequence[PyTree]) -> None:
    first, layout = batches[0], tree.structure(batches[0])
    for k, batch in zip(indices, batches, strict=True):
        own = tree.structure(batch)
        assert own == layout, f"batch {k} has the structure {own}, but batch 0 has {layout}"
        for leaf, other in zip(tree.leaves(batch), tree.leaves(first), strict=True):
            assert _kind(leaf) == _kind(other), (
                f"batch {k} has {_kind(leaf)} where batch 0 has {_kind(other)}"
            )
            assert not isinstance(leaf, Tensor) or not leaf.requires_grad, (
                f"a tensor of batch {k} requires grad, but batches of a stream carry no gradient"
            )


def _check_threads(read: _Read, indices: Sequence[int], contents: Sequence[_Content]) -> None:
    count = len(indices)
    places = [(place + shift) % count for shift in range(4) for place in range(count)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda place: read(indices[place]), places))
    for place, batch in zip(places, batches, strict=True):
        assert _content(batch) == contents[place], (
            f"batch {indices[place]} differs when several threads ask for batches at once"
        )


def _check_pickle(stream: Stream, k: int, content: _Content, device: torch.device) -> None:
    try:
        pickled = pickle.dumps(stream)
    except Exception:  # a function defined inside another, for one
        return
    again = _reader(pickle.loads(pickled), device)
    assert _content(again(k)) == content, "a copy of the stream by pickle gives another batch"


def _description(stream: Stream) -> str | None:
    try:
        return describe(stream, "the stream")
    except CompatibilityError:  # it cannot be resumed with
        return None
