"""What loops with one module share; it goes when the module does."""

from __future__ import annotations

import threading
import weakref

from torch import nn

from odeopt.adjoint.linearize import Differentiation
from odeopt.engine.compile.compiler import Compiler
from odeopt.engine.watch import WatchedLosses

_Looked = tuple[WatchedLosses, dict[object, list[str]]]
_LOOKED: weakref.WeakKeyDictionary[nn.Module, dict[type[Differentiation], _Looked]] = (
    weakref.WeakKeyDictionary()
)
_COMPILERS: weakref.WeakKeyDictionary[nn.Module, dict[str, Compiler]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def shared_compiler(module: nn.Module, backend: str) -> Compiler:
    """The compiler of all loops with a module; it goes when the module does."""
    with _LOCK:
        own = _COMPILERS.setdefault(module, {})
        if backend not in own:
            own[backend] = Compiler(backend)
        return own[backend]


def looked_at(module: nn.Module, differentiation: Differentiation) -> _Looked:
    """The losses that loops with a module have looked at, so that each is looked at once.

    With the names of the parameters on which they do not depend.
    """
    with _LOCK:
        own = _LOOKED.setdefault(module, {})
        return own.setdefault(type(differentiation), (WatchedLosses(differentiation), {}))
