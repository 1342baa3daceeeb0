"""Other tensors in the places of a module's own, for the time of a call."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from odeopt.errors import InputError

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


class _Place(NamedTuple):
    """Where a module keeps a tensor."""

    tensors: dict[str, Any]
    key: str


@final
class Loan:
    """Lends a module other parameters and buffers, and gives it back as it was.

    A tensor that is in several places (tied parameters, a submodule in two places) is replaced in
    all of them. Threads that borrow one module take turns.

    Args:
        module: the module; parts that are added to it later are not replaced.
    """

    def __init__(self, module: nn.Module) -> None:
        self._children = dict(module.named_modules())
        self._places: dict[str, list[_Place]] = {}
        with _MAKING:
            self._lock = _LOCKS.setdefault(module, threading.RLock())
        names = {id(p): name for name, p in (*module.named_parameters(), *module.named_buffers())}
        for child in module.modules():
            own: list[dict[str, Any]] = [vars(child)[part] for part in ("_parameters", "_buffers")]
            for tensors in own:
                for key, tensor in tensors.items():
                    if tensor is not None:
                        place = _Place(tensors, key)
                        self._places.setdefault(names[id(tensor)], []).append(place)

    def __reduce__(self) -> Any:
        raise InputError(
            "a recorded loop, or a module that was taken apart, can be neither copied nor pickled:"
            " it belongs to its module. Make another one from a copy of the module; inner.model and"
            " inner.write_back() give what a loop has come to."
        )

    @contextmanager
    def of(self, values: Mapping[str, Tensor], training: Mapping[str, bool]) -> Generator[None]:
        """A block in which the module has other tensors, by name, and is in other modes."""
        with self._lock:
            children = self._children
            modes = {name: children[name].training for name in training}
            before = [
                (place, place.tensors[place.key], value)
                for name, value in values.items()
                for place in self._places[name]
            ]
            try:
                for place, _, value in before:
                    place.tensors[place.key] = value
                for name, mode in training.items():
                    children[name].training = mode
                yield
            finally:
                for place, own, _ in before:
                    place.tensors[place.key] = own
                for name, mode in modes.items():
                    children[name].training = mode
