"""Objects as text by which another process, or a later one, can tell whether it has the same.

An object is taken apart as pickle would do it, but for functions, whose code is compared.
"""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import hashlib
import types
import weakref
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from odeopt.errors import CompatibilityError
from odeopt.tools.captured import used_by
from odeopt.tools.packing import digest_values


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The names of parts that are not the same, or that only one of the two has."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def describe(value: Any, name: str = "it") -> str:
    """Text that is the same if, and only if, two objects have the same settings.

    An object may have a method `settings()` that returns a mapping of what its results depend on;
    else all its attributes count, but for the fields of a dataclass that do not count when two are
    compared (`compare=False`). A function is its name, its code and its defaults, without what
    it has captured, which may count its calls. A tensor is its shape, dtype and values.

    Args:
        value: anything.
        name: what to call it in an error.

    Raises:
        CompatibilityError: if there is an object about which nothing can be said.
    """
    return _Describer(strict=True).whole(value, name)


def describe_leniently(value: Any) -> str:
    """The same, but objects about which nothing can be said are described by their type."""
    return _Describer().whole(value)


def describe_with_captures(value: Any, contents: bool = True) -> str:
    """The same, and the numbers, tensors, modules and functions that functions have captured.

    Without `contents` a tensor or array is its shape and dtype only, which costs nothing.
    """
    return _Describer(captures=True, contents=contents).whole(value)


def module_settings(module: nn.Module) -> dict[str, Any]:
    """A module without its parameters and buffers, in whose place others will be used."""
    children = dict(module.named_modules())
    return {
        "classes": {name: type(child) for name, child in children.items()},
        "attributes": {name: _own_attributes(child) for name, child in children.items()},
        "shapes": {name: tuple(leaf.shape) for name, leaf in module.named_parameters()},
    }


_NEW = object().__reduce_ex__(2)[0]
"""What pickle calls to make an object of most classes."""

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))
_REFERRING = (types.CodeType, types.FunctionType, types.MethodType, weakref.ReferenceType)
_UNCHANGING = (
    tuple, type, types.ModuleType, types.BuiltinFunctionType, *_REFERRING, Enum, PurePath, Tensor,
    torch.dtype, torch.device,
)  # fmt: skip
"""Of these it makes no difference whether one is met twice or two that are the same."""

_CAPTURED = (
    type(None), bool, int, float, complex, list, tuple, dict, set, np.ndarray, np.generic,
    *_UNCHANGING, functools.partial, nn.Module,
)  # fmt: skip
"""What is compared where a function has captured it: not texts, which may name a device."""


@dataclasses.dataclass(eq=False)
class _Describer:
    """Describes one object with everything in it; what is met again is a number then."""

    strict: bool = False
    """Whether an object about which nothing can be said is an error; else it is its type."""
    captures: bool = False
    contents: bool = True
    met: dict[int, tuple[int, Any]] = dataclasses.field(default_factory=dict[int, tuple[int, Any]])
    """By identity: a number, and the object itself, so that its identity is not used again."""

    def whole(self, value: Any, name: str = "") -> str:
        """An object that is not a part of another."""
        try:
            return self.text(value, name)
        except RecursionError:
            return self.unknown(value, name, "it is nested too deeply")

    def unknown(self, value: Any, where: str, reason: str) -> str:
        """An object that cannot be described."""
        if not self.strict:
            return _named(type(value))
        raise CompatibilityError(
            f"{where}, a {_named(type(value))}, cannot be compared with that of another process:"
            f" {reason}. Give its class, or that of an object that holds it, a method settings()"
            " that returns a mapping of what the results depend on, or leave resume out."
        )

    def text(self, value: Any, where: str) -> str:
        if type(value) in _PLAIN:
            return repr(value)
        if not isinstance(value, _UNCHANGING):
            if id(value) in self.met:
                return f"<{self.met[id(value)][0]}>"
            self.met[id(value)] = len(self.met), value
        if not isinstance(value, type) and callable(getattr(type(value), "settings", None)):
            return self._settings(value, where)
        return self._inside(value, where)

    def _inside(self, value: Any, where: str) -> str:
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            content = ""
            if self.contents:
                content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return f"array({value.dtype!r}, {value.shape}, {content})"
        if isinstance(value, type | types.ModuleType | torch.device):
            return _named(value)
        if isinstance(value, _REFERRING):
            return self._referring(value, where)
        return self._container(value, where)

    def _referring(self, value: Any, where: str) -> str:
        """Code, and what refers to an object."""
        match value:
            case types.CodeType():
                parts = self.text((value.co_code, value.co_consts, value.co_names), where)
                name, parts = "code", (hashlib.sha256(parts.encode()).hexdigest(),)
            case types.FunctionType():
                name = f"{value.__module__}.{value.__qualname__}"
                parts = value.__code__, value.__defaults__, value.__kwdefaults__, *self._used(value)
            case types.MethodType():
                name, parts = "method", (value.__func__, value.__self__)
            case _:
                name, parts = "reference", (value(),)
        return _call(name, [self.text(part, where) for part in parts])

    def _used(self, function: types.FunctionType) -> list[Any]:
        """What a function has captured, once; of other objects only the class."""
        if not self.captures or id(function) in self.met:
            return []
        self.met[id(function)] = len(self.met), function
        return [part if isinstance(part, _CAPTURED) else type(part) for part in used_by(function)]

    def _container(self, value: Any, where: str) -> str:
        kind = type(value)
        if kind in (list, tuple):
            return _call(kind.__name__, self._items(value, where))
        if kind in (dict, types.MappingProxyType):
            return _call("dict", self._pairs(value, where))
        if isinstance(value, set | frozenset):  # each by itself, since they come in any order
            members = cast("set[Any]", value)
            texts = [dataclasses.replace(self, met={}).text(part, where) for part in members]
            return _call(_named(type(members)), sorted(texts))
        return self._object(value, where)

    def _settings(self, value: Any, where: str) -> str:
        try:
            settings = value.settings()
        except TypeError as error:
            return self.unknown(value, where, f"its settings() fails ({error})")
        if not isinstance(settings, Mapping):
            return self.unknown(value, where, f"its settings() returns a {_named(type(settings))}")
        pairs = self._pairs(cast("Mapping[Any, Any]", settings), f"{where}.settings()")
        return _call(_named(type(value)), pairs)

    def _tensor(self, value: Tensor, where: str) -> str:
        try:
            content = digest_values([value]) if self.contents else ""
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return self.unknown(value, where, _first_line(error))
        return f"tensor({value.dtype}, {tuple(value.shape)}, {content})"

    def _object(self, value: Any, where: str) -> str:
        """As pickle takes it apart, one level deep."""
        reduce = copyreg.dispatch_table.get(type(value), lambda own: own.__reduce_ex__(2))
        try:
            parts = reduce(value)
        except Exception as error:  # whatever a class says to being pickled
            return self.unknown(value, where, _first_line(error))
        if isinstance(parts, str):  # a name in a module
            inner = self.text(getattr(value, "__wrapped__", None), where)
            return _call(f"{getattr(value, '__module__', None)}.{parts}", [inner])
        whole: tuple[Any, ...] = (*parts, None, None, None)[:5]
        make, args, state, items, pairs = whole
        begin = args if make is _NEW else (make, args)
        inside = [self.text(begin, where), self._state(value, state, where)]
        inside += self._items(items or (), where)
        inside += self._pairs(dict(pairs or ()), where)
        return _call(_named(type(value)), inside)

    def _state(self, value: Any, state: Any, where: str) -> str:
        """The attributes in the order of their names, those in slots after the others."""
        if isinstance(value, nn.Module) and isinstance(state, dict):
            state = _without_numbers(cast("dict[str, Any]", state))
        if dataclasses.is_dataclass(value) and isinstance(state, dict):
            state = _compared(value, cast("dict[str, Any]", state))
        parts = cast("tuple[Any, ...]", state) if type(state) is tuple else (state,)
        return _call("state", [self._attributes(part, where) for part in parts])

    def _attributes(self, part: Any, where: str) -> str:
        if type(part) is not dict or not all(isinstance(name, str) for name in part):
            return self.text(part, where)
        own = cast("dict[str, Any]", part)
        return _call("", [f"{k}={self.text(own[k], f'{where}.{k}')}" for k in sorted(own)])

    def _items(self, items: Iterable[Any], where: str) -> list[str]:
        return [self.text(item, f"{where}[{place}]") for place, item in enumerate(items)]

    def _pairs(self, pairs: Mapping[Any, Any], where: str) -> list[str]:
        return [
            f"{self.text(key, where)}: {self.text(part, f'{where}[{key!r}]')}"
            for key, part in pairs.items()
        ]


def _call(name: str, parts: Iterable[str]) -> str:
    return f"{name}({', '.join(parts)})"


def _named(value: type | types.ModuleType | torch.device) -> str:
    """What has a name; the number of a device makes no difference."""
    if isinstance(value, torch.device):
        return f"device({value.type})"
    if isinstance(value, types.ModuleType):
        return value.__name__
    return f"{value.__module__}.{value.__qualname__}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _without_numbers(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module; its hooks without their keys, which count in the process."""
    return {
        name: list(part.values()) if "_hooks" in name and isinstance(part, dict) else part
        for name, part in attributes.items()
    }


def _compared(value: Any, attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a dataclass but for the fields that do not count when two are compared."""
    left_out = {part.name for part in dataclasses.fields(value) if not part.compare}
    return {name: part for name, part in attributes.items() if name not in left_out}


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are neither parameters nor buffers nor other modules."""
    held = ("_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs")
    return _without_numbers({n: part for n, part in vars(module).items() if n not in held})
