"""What a function or an object uses without being handed it: closures, globals, attributes."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from odeopt.errors import CompatibilityError

MOST = 20_000
"""Objects that are looked at; beyond them nothing is said."""

_NUMBERS = (bool, int, float, complex, str, bytes, types.NoneType)
_FOREIGN = ("torch", "numpy", "builtins", "functools", "math", "collections", "typing")
"""Packages whose own functions and classes are not looked into."""


def reachable(value: Any) -> Iterator[Any]:
    """Every object that a value uses, itself first, each once, and numbers as often as they occur.

    Functions lead to the values in their closures, their defaults and the globals that they name;
    other objects to their attributes and parts. Nothing is called. Tensors have no parts, and
    neither have modules of Python, classes, and functions of torch and of Python itself.
    """
    waiting, seen = deque([value]), set[int]()
    alive: list[Any] = []  # an object that is made on the way must not lend its id to another
    while waiting and len(seen) < MOST:
        part = waiting.popleft()
        if isinstance(part, _NUMBERS):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            alive.append(part)
            yield part
            waiting.extend(_parts(part))


def captured_values(value: Any) -> tuple[Any, ...]:
    """The numbers, texts and tensors that a value uses, to be compared with those of later calls.

    Tensors compare by identity: a change in place is seen by whoever holds the tensor.
    """
    return tuple(
        _Same(part) if isinstance(part, Tensor) else (type(part), part)
        for part in reachable(value)
        if isinstance(part, (Tensor, *_NUMBERS))
    )


class _Same:
    """Equal to the same tensor only."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._tensor is self._tensor

    def __hash__(self) -> int:
        return id(self._tensor)


def check_not_scripted(value: Any) -> None:
    """Raise `CompatibilityError` if a value uses something that TorchScript runs."""
    for part in reachable(value):
        if isinstance(part, torch.jit.ScriptModule):
            name = f"the module {getattr(part, 'original_name', type(part).__name__)}"
        elif isinstance(part, torch.jit.ScriptFunction):
            name = f"the function {part.name}"
        else:
            continue
        raise CompatibilityError(
            f"the loss uses {name} of TorchScript, whose second derivatives are wrong under"
            " torch.func: use the module or function that it was made from, and compile= of the"
            " optimiser for speed."
        )


def _parts(value: Any) -> Iterable[Any]:
    """What an object holds, in the order in which it holds it."""
    match value:
        case Tensor() | types.ModuleType() | type():
            return ()
        case types.FunctionType():
            return used_by(value)
        case types.MethodType():
            return value.__func__, value.__self__
        case functools.partial():
            return value.func, *value.args, *value.keywords.values()
        case Mapping() | list() | tuple() | set() | frozenset() | deque():
            own = value.values() if isinstance(value, Mapping) else value
            return [*own, *getattr(value, "__dict__", {}).values()]
        case _:
            return _attributes(value)


def used_by(function: types.FunctionType) -> list[Any]:
    """What a function uses without being handed it; nothing for those of torch and Python."""
    if (function.__module__ or "").partition(".")[0] in _FOREIGN:
        return []
    parts: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # the variable has no value yet
            parts.append(cell.cell_contents)
    names = _names(function.__code__)
    parts += [function.__globals__[name] for name in names if name in function.__globals__]
    return [*parts, *vars(function).values()]


def _names(code: types.CodeType) -> list[str]:
    """The names that a function may look up, those of functions defined inside it included."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [*code.co_names, *(name for const in inner for name in _names(const))]


def _attributes(value: Any) -> list[Any]:
    own = list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            is_slot = isinstance(kind.__dict__.get(name), types.MemberDescriptorType)
            if is_slot and hasattr(value, name):
                own.append(getattr(value, name))
    return own
