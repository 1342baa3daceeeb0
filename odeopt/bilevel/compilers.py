"""Compiled kernels that outlive a loop: the next one with the same module needs them again."""

from __future__ import annotations

import threading
import weakref

from torch import nn

from odeopt.compilation import Compiler

_COMPILERS: weakref.WeakKeyDictionary[nn.Module, dict[str, Compiler]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def shared_compiler(module: nn.Module, backend: str) -> Compiler:
    """The compiler of all loops with a module; it goes when the module does."""
    with _LOCK:
        own = _COMPILERS.setdefault(module, {})
        if backend not in own:
            own[backend] = Compiler(backend)
        return own[backend]
