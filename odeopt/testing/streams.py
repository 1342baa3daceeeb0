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
from odeopt.tools.describing import describe, describe_leniently
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
    texts: list[str] = []
    for k in indices:
        batches.append(read(k))
        texts.append(describe_leniently(batches[-1]))
    _check_structure(indices, batches)
    for k, batch, text in zip(indices, batches, texts, strict=True):
        assert describe_leniently(batch) == text, (
            f"batch {k} changes when other batches are made: make a new tensor for each"
        )
    for k, text in reversed(list(zip(indices, texts, strict=True))):
        assert describe_leniently(read(k)) == text, (
            f"batch {k} differs when it is asked for again: it must depend on the index alone"
        )
    _check_threads(read, indices, texts)
    _check_pickle(stream, indices[0], texts[0], device)
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


def _check_threads(read: _Read, indices: Sequence[int], texts: Sequence[str]) -> None:
    count = len(indices)
    places = [(place + shift) % count for shift in range(4) for place in range(count)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda place: read(indices[place]), places))
    for place, batch in zip(places, batches, strict=True):
        assert describe_leniently(batch) == texts[place], (
            f"batch {indices[place]} differs when several threads ask for batches at once"
        )


def _check_pickle(stream: Stream, k: int, text: str, device: torch.device) -> None:
    try:
        content = pickle.dumps(stream)
    except Exception:  # a function defined inside another, for one
        return
    again = _reader(pickle.loads(content), device)
    assert describe_leniently(again(k)) == text, (
        "a copy of the stream by pickle gives another batch"
    )


def _description(stream: Stream) -> str | None:
    try:
        return describe(stream, "the stream")
    except CompatibilityError:  # it cannot be resumed with
        return None
