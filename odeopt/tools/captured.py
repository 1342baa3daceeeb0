"""What a function or an object uses without being handed it: closures, globals, attributes."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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
        found = waiting.popleft()
        if isinstance(found, _NUMBERS):
            yield found
            continue
        if id(found) in seen:
            continue
        seen.add(id(found))
        alive.append(found)
        yield found
        waiting.extend(_parts(found))


def captured_values(value: Any) -> tuple[Any, ...]:
    """The numbers, texts and tensors that a value uses, to be compared with those of later calls.

    Tensors compare by identity: a change in place is seen by whoever holds the tensor.
    """
    return tuple(
        _Same(found) if isinstance(found, Tensor) else (type(found), found)
        for found in reachable(value)
        if isinstance(found, (Tensor, *_NUMBERS))
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
    for found in reachable(value):
        if isinstance(found, torch.jit.ScriptModule):
            name = f"the module {getattr(found, 'original_name', type(found).__name__)}"
        elif isinstance(found, torch.jit.ScriptFunction):
            name = f"the function {found.name}"
        else:
            continue
        raise CompatibilityError(
            f"the loss uses {name} of TorchScript, whose second derivatives are wrong under"
            " torch.func: use the module or function that it was made from, and compile= of the"
            " optimiser for speed."
        )


@functools.singledispatch
def _parts(value: Any) -> Iterable[Any]:
    """What an object holds, in the order in which it holds it."""
    return _attributes(value)


@_parts.register(Tensor)
@_parts.register(types.ModuleType)
@_parts.register(type)
def _nothing(value: Any) -> Iterable[Any]:
    del value
    return ()


@_parts.register
def _of_method(value: types.MethodType) -> Iterable[Any]:
    return value.__func__, value.__self__


@_parts.register
def _of_partial(value: functools.partial) -> Iterable[Any]:  # type: ignore[type-arg]
    return value.func, *value.args, *value.keywords.values()


@_parts.register
def _of_mapping(value: Mapping) -> Iterable[Any]:  # type: ignore[type-arg]
    return [*value.values(), *getattr(value, "__dict__", {}).values()]


@_parts.register(list)
@_parts.register(tuple)
@_parts.register(set)
@_parts.register(frozenset)
@_parts.register(deque)
def _of_collection(value: Any) -> Iterable[Any]:
    return [*value, *getattr(value, "__dict__", {}).values()]


@_parts.register
def used_by(function: types.FunctionType) -> Iterable[Any]:
    """What a function uses without being handed it; nothing for those of torch and Python."""
    if (function.__module__ or "").partition(".")[0] in _FOREIGN:
        return ()
    found: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    found += [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    names = _names(function.__code__)
    found += [function.__globals__[name] for name in names if name in function.__globals__]
    return [*found, *vars(function).values()]


def _names(code: types.CodeType) -> list[str]:
    """The names that a function may look up, those of functions defined inside it included."""
    found = list(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            found += _names(const)
    return found


def _is_filled(cell: types.CellType) -> bool:
    """Whether the variable has a value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _attributes(value: Any) -> list[Any]:
    own = list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if isinstance(kind.__dict__.get(name), types.MemberDescriptorType):
                own += [getattr(value, name)] if hasattr(value, name) else []
    return own
