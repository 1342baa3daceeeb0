"""Unknown names: what is said of them, and constructors that refuse unknown keywords."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from odeopt.errors import UnknownKeywordError
from odeopt.tools.shown import Shown

_WORD = re.compile(r"[^\W_]+")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def unknown(
    kind: str, names: Iterable[object], known: Sequence[str], near: Iterable[str] = ()
) -> str:
    """The message for unknown names, each with the nearest one that is known.

    Args:
        kind: what they are names of.
        names: the unknown ones.
        known: all that there are, in the order in which they are listed.
        near: what may be proposed instead; the known names by default.
    """
    candidates = list(near) or known
    meant = {str(name): nearest(str(name), candidates) for name in names}
    shown = ", ".join(f"{n!r} (did you mean {m!r}?)" if m else repr(n) for n, m in meant.items())
    expected = f"one of {', '.join(known)}" if known else "none"
    return f"unknown {kind} {shown}; expected {expected}."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant.

    It is spelt alike; or else one of the two has all words of the other, as in "inner_lr" and "lr",
    or the known one its initials, as in "learning_rate" and "lr".
    """
    name = name.casefold()
    folded = {each.casefold(): each for each in known}
    alike = get_close_matches(name, folded, n=1)
    if not alike:
        related = [each for each in folded if _are_related(name, each)]
        alike = get_close_matches(name, related, n=1, cutoff=0.0)
    return folded[alike[0]] if alike else None


class Keywords(NamedTuple):
    """What a function takes by keyword."""

    names: tuple[str, ...]
    open: bool
    """Whether it takes any other as well."""

    def check(self, owner: str, passed: Iterable[object]) -> None:
        """Raise an error on keywords that are not taken.

        Args:
            owner: whose keywords they are, for the message.
            passed: their names.

        Raises:
            UnknownKeywordError: if one is unknown; the message lists those that are known.
        """
        wrong = [] if self.open else [name for name in passed if name not in self.names]
        if wrong:
            raise UnknownKeywordError(f"{owner}: {unknown('keyword', wrong, self.names)}")


def keywords_of(function: Callable[..., Any]) -> Keywords:
    """What a function or a class takes by keyword: anything if it has `**keywords`."""
    if function is object.__init__:
        return Keywords((), open=False)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # there is none to look at
        return Keywords((), open=True)
    names = tuple(p.name for p in parameters if p.kind in _BY_NAME and p.name != "self")
    return Keywords(names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


_of_constructor = lru_cache(maxsize=256)(keywords_of)


class KnownKeywords(Shown):
    """Base of classes whose constructors name the keyword that was probably meant.

    They raise `UnknownKeywordError` where Python would raise a bare `TypeError`. Objects are shown
    by their arguments, see `Shown`.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # type checkers look at the __init__ of each class

        def __new__(cls, *args: Any, **keywords: Any) -> Any:
            following = super().__new__
            plain = following is object.__new__
            instance = following(cls) if plain else following(cls, *args, **keywords)
            if keywords and (plain or cls.__init__ is not object.__init__):
                _of_constructor(cls.__init__).check(cls.__name__, keywords)
            if args and plain and cls.__init__ is object.__init__:
                raise TypeError(f"{cls.__name__}() takes no arguments")
            return instance

        # what `inspect` shows of classes without an __init__
        __new__.__signature__ = inspect.Signature(
            [inspect.Parameter("cls", inspect.Parameter.POSITIONAL_ONLY)]
        )


def _are_related(one: str, other: str) -> bool:
    mine, theirs = _WORD.findall(one), _WORD.findall(other)
    if not mine or not theirs:
        return False
    shared = set(mine) <= set(theirs) or set(theirs) <= set(mine)
    return shared or "".join(word[0] for word in mine) == other
