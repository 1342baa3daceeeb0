"""Objects as short text for people: in a REPL, in a log, in an error.

It says the choices that were made and the shapes of tensors, never their numbers, but for a single
one. It is no identity of an object, for which see `odeopt.tools.describing`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import PurePath
from reprlib import recursive_repr
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

LONGEST = 200
"""Characters of one object."""

INSIDE = 90
"""Characters of what is inside of another."""

_ITEMS = 6
_DEPTH = 4
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), range, slice, Enum,
    np.number, np.bool_, torch.dtype, torch.device,
)  # fmt: skip
_NONE: Any = object()


class Shown:
    """Base of classes whose objects are shown by the arguments that differ from their defaults.

    An argument is looked for in the attribute of its name, with or without an underscore, and then
    in the dataclasses that the object holds. A subclass that keeps it elsewhere says it in
    `_given`, or writes `_shown`.
    """

    __slots__ = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Keep `dataclass` from writing a representation that prints every field."""
        super().__init_subclass__(**keywords)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__

    def _given(self) -> Mapping[str, Any]:
        """Arguments that are not kept under their names, or not as they were given."""
        return {}

    def _shown(self) -> Iterable[str]:
        """What stands between the brackets: the first argument, and others by their names."""
        own, given = getattr(self, "__dict__", {}), self._given()
        for place, (name, default) in enumerate(_parameters(type(self))):
            value = given[name] if name in given else _kept(own, name)
            if value is not _NONE and not _is_same(value, default):
                alone = place == 0 and not isinstance(value, bool | None)
                yield shown(value) if alone else f"{name}={shown(value)}"

    @recursive_repr()
    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            return call(name, self._shown())
        except Exception:
            return f"{name}(...)"


def shown(value: Any, limit: int = INSIDE) -> str:
    """Any value in one short line; it never fails.

    A tensor is its shape, unless it holds a single number; a function or a class its name; an
    object of a class that says nothing of itself that class.
    """
    try:
        return cut(_text(value, _DEPTH, limit), limit)
    except Exception:
        return f"{type(value).__name__}(...)"


def call(name: str, parts: Iterable[str], limit: int = LONGEST) -> str:
    """`name(part, part)`; parts at the end are left out where it would be too long."""
    room, kept = limit - len(name) - len("(, ...)"), list[str]()
    for part in parts:
        text = cut(" ".join(part.split()), room if not kept else limit)
        if len(text) > room:
            kept.append("...")
            break
        kept.append(text)
        room -= len(text) + len(", ")
    return f"{name}({', '.join(kept)})"


def number(value: Any) -> str:
    """A number, or a tensor that holds one, to four digits; a larger tensor by its shape and mean.

    Where a number cannot be looked at, as inside of `torch.func.vmap`, it is the shape.
    """
    if not isinstance(value, Tensor):
        return f"{value:.4g}" if isinstance(value, float | complex) else str(value)
    shape = f"tensor of shape {list(value.shape)}"
    try:
        if value.ndim == 0:
            return number(value.detach().item())
        return f"{shape}, mean {value.detach().double().mean().item():.4g}"
    except Exception:
        return shape


def norm(name: str, tensors: Iterable[Tensor]) -> list[str]:
    """`|name|=0.12`, the norm of all entries together; nothing if there are none to look at."""
    try:
        with torch.no_grad():
            norms = [torch.linalg.vector_norm(leaf.detach().double()) for leaf in tensors]
            if not norms:
                return []
            total = torch.stack([own.to(norms[0].device) for own in norms]).norm()
            return [f"|{name}|={total.item():.4g}"]
    except Exception:
        return []


def counted(count: int, what: str) -> str:
    """`1 step`, `3 steps`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def cut(text: str, limit: int) -> str:
    """The text without its end where it is too long."""
    return text if len(text) <= limit else text[: max(limit - 3, 0)] + "..."


def _text(value: Any, depth: int, limit: int) -> str:
    match value:
        case Tensor():
            return _tensor(value)
        case np.ndarray():
            return f"array of shape {list(value.shape)}"
        case str() | bytes():
            return repr(value[:limit])
        case PurePath():
            return repr(str(value))
        case partial() | dict() | list() | tuple() | set() | frozenset() | Mapping():
            return _container(cast("Any", value), depth, limit)
        case _:
            return repr(value) if isinstance(value, (*_PLAIN, Shown)) else _named(value, limit)


def _tensor(value: Tensor) -> str:
    if value.ndim:
        return f"tensor of shape {list(value.shape)}"
    text = number(value)
    return text if text.startswith("tensor") else f"tensor({text})"


def _named(value: Any, limit: int) -> str:
    """A function or a class by its name, another object by that of its class."""
    name = getattr(value, "__qualname__", None)
    if not isinstance(name, str) or not callable(value):
        return f"{type(value).__name__}(...)"
    own: str = value.__name__ if inspect.isbuiltin(value) else name
    return own if len(own) <= limit else f"...{own[3 - limit :]}"


def _container(value: Any, depth: int, limit: int) -> str:
    """The first items of a collection; a partial is one of its arguments."""
    if depth == 0:
        return "..."
    inside = partial(_text, depth=depth - 1, limit=limit)
    kind = type(value)
    before, after = _BRACKETS.get(kind, (f"{kind.__name__}(", ")"))
    if isinstance(value, partial):
        positional = map(inside, (value.func, *value.args))
        named = (f"{key}={inside(part)}" for key, part in value.keywords.items())
        return call("partial", chain(positional, named), limit)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value).items()
        texts = (f"{inside(key)}: {inside(part)}" for key, part in pairs)
    else:
        texts = map(inside, value)
    more = ["..."] if len(value) > _ITEMS else []
    single = "," if kind is tuple and len(value) == 1 else ""
    return f"{before}{', '.join(chain(islice(texts, _ITEMS), more))}{single}{after}"


_BRACKETS = {dict: "{}", list: "[]", tuple: "()"}


@lru_cache(maxsize=256)
def _parameters(kind: type) -> tuple[tuple[str, Any], ...]:
    """What a constructor takes, with the defaults."""
    if kind.__init__ is object.__init__:
        return ()
    found: Callable[..., Any] = kind.__init__
    parameters = list(inspect.signature(found).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return tuple((p.name, p.default) for p in named)


def _kept(own: Mapping[str, Any], name: str) -> Any:
    """What an object has kept of an argument, given its attributes."""
    for known in (name, f"_{name}"):
        if known in own:
            return own[known]
    for part in own.values():
        if dataclasses.is_dataclass(part) and not isinstance(part, Shown | type):
            inside = getattr(part, "__dict__", {})
            if name in inside:
                return inside[name]
    return _NONE


def _is_same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if isinstance(value, Tensor | np.ndarray):
        return False
    try:
        return bool(value == default)
    except Exception:
        return False
