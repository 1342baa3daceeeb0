"""Registries: names for the choices of a solve, compile backends and methods."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from typing_extensions import override

from odeopt.errors import InputError, UnknownNameError
from odeopt.tools.keywords import unknown
from odeopt.tools.plugins import BUILT_IN, PLUGINS, PluginReport, package
from odeopt.tools.plugins import ENTRY_POINT_GROUP as ENTRY_POINT_GROUP  # noqa: PLC0414  (public here)
from odeopt.tools.shown import Shown, shown

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registration(NamedTuple):
    """What a registry holds under a name."""

    entry: Callable[..., Any]
    example: Callable[..., Any]
    home: str
    """The module that registered it."""


@dataclass
class Registry(Shown):
    """Entries by name; plugins are loaded when a name is first looked up.

    An entry is a class or a factory. With it goes an example: a function that builds a
    representative instance, on which the conformance suites of `odeopt.testing` run.
    """

    kind: str
    _entries: dict[str, Registration] = field(default_factory=dict[str, Registration])

    @override
    def _shown(self) -> Iterator[str]:
        yield self.kind
        yield from map(repr, sorted(self._entries))

    def register(
        self, name: str, example: Callable[..., Any] | None = None
    ) -> Callable[[Entry], Entry]:
        """A decorator that registers a class or a factory.

        Args:
            name: lower case words joined by hyphens, e.g. "modified-euler".
            example: builds a representative instance; the entry itself, called without
                arguments, by default. For fields it is called with a loss.

        Raises:
            InputError: if the name is no text that can be printed, or is taken, as those of
                built-in entries always are; or if the entry cannot be called. A module may
                register an entry again, as it does when it is reloaded.
        """
        if not isinstance(name, str) or not name.strip() or not name.isprintable():  # pyright: ignore
            raise InputError(
                f"cannot register a {self.kind} under the name {name!r}; expected lower case words"
                ' joined by hyphens, e.g. "modified-euler".'
            )

        def decorate(entry: Entry) -> Entry:
            frame = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            module = str(frame.f_globals.get("__name__"))
            if package(module) not in ("odeopt", BUILT_IN):
                PLUGINS.load_built_in()
            if not callable(entry):
                raise InputError(
                    f"cannot register {shown(entry)} as {self.kind} {name!r}; expected a class or a"
                    " function."
                )
            known = self._entries.get(name)
            if known and (_origin(known.entry), known.home) != (_origin(entry), module):
                raise InputError(
                    f"cannot register {_origin(entry)} as {self.kind} {name!r}:"
                    f" {_origin(known.entry)} has that name, registered by {known.home}. Choose"
                    " another."
                )
            PLUGINS.note(module, partial(self._put_back, name, known))
            self._entries[name] = Registration(entry, example or entry, module)
            return entry

        return decorate

    def _put_back(self, name: str, before: Registration | None) -> None:
        """Let a name have what it had before a plugin registered it."""
        if before is None:
            self._entries.pop(name, None)
        else:
            self._entries[name] = before

    def names(self) -> list[str]:
        """The registered names, sorted."""
        load_plugins()
        return sorted(self._entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The class or factory with that name.

        Raises:
            UnknownNameError: if there is none; the message lists the names there are.
        """
        return self._registration(name).entry

    def example(self, name: str) -> Callable[..., Any]:
        """The function that builds a representative instance of that entry."""
        return self._registration(name).example

    def _registration(self, name: str) -> Registration:
        reports = load_plugins()
        if name not in self._entries:
            failed = [report.name for report in reports if report.error is not None]
            hint = f" Plugins that failed to load: {', '.join(failed)}." if failed else ""
            raise UnknownNameError(unknown(self.kind, [name], self.names()) + hint)
        return self._entries[name]


FIELDS = Registry("field")
"""Fields and update rules: made from a loss."""

SOLVERS = Registry("solver")
"""Solvers: `Solver` instances."""

ADJOINTS = Registry("adjoint")
"""Adjoints: `LocalAdjoint` or `WholeAdjoint` instances."""

CHECKPOINTS = Registry("checkpoint schedule")
"""Checkpoint schedules."""

BACKENDS = Registry("compile backend")
"""Compile backends: `Backend` instances, see `ODEOptimizer(compile=...)`."""

METHODS = Registry("method")
"""Meta-learning methods: `METHODS.get(name)(loss, outer_loss=None, **settings)` is a `Method`."""


def load_plugins() -> list[PluginReport]:
    """Import every module of the entry-point group `odeopt.plugins`, once; the built-in one first.

    A module that fails to import, whatever it raises, is reported. What it had registered by then
    is taken back, and it brings nothing else down. Other threads wait until all are loaded; a
    plugin that looks up a name while it is imported finds what is there by then.
    """
    return PLUGINS.load()


def _origin(entry: Callable[..., Any]) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
