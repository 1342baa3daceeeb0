"""Registries: names for fields, solvers, adjoints, checkpoint schedules and methods."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from odeopt.errors import InputError, UnknownNameError

ENTRY_POINT_GROUP = "odeopt.plugins"

Entry = TypeVar("Entry", bound=Callable[..., Any])


@dataclass(frozen=True)
class PluginReport:
    """What became of one entry point: `error` is None when its module was imported."""

    name: str
    module: str
    distribution: str
    version: str
    error: str | None


@dataclass
class Registry:
    """Entries by name; plugins are loaded when a name is first looked up.

    An entry is a class or a factory. With it goes an example: a function that builds a
    representative instance, on which the conformance suites of `odeopt.testing` run.
    """

    kind: str
    _entries: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    _examples: dict[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])

    def register(
        self, name: str, example: Callable[..., Any] | None = None
    ) -> Callable[[Entry], Entry]:
        """A decorator that registers a class or a factory.

        Args:
            name: lower case words joined by hyphens, e.g. "modified-euler".
            example: builds a representative instance; the entry itself, called without
                arguments, by default. For fields it is called with a loss.

        Raises:
            InputError: if the name is taken by another entry, or empty.
        """
        if not name:
            raise InputError(f"cannot register a {self.kind} under an empty name.")

        def decorate(entry: Entry) -> Entry:
            known = self._entries.get(name)
            if known is not None and _origin(known) != _origin(entry):
                raise InputError(
                    f"cannot register {_origin(entry)} as {self.kind} {name!r}:"
                    f" {_origin(known)} has that name. Choose another."
                )
            self._entries[name] = entry
            self._examples[name] = example or entry
            return entry

        return decorate

    def names(self) -> list[str]:
        """The registered names, sorted."""
        load_plugins()
        return sorted(self._entries)

    def get(self, name: str) -> Callable[..., Any]:
        """The class or factory with that name.

        Raises:
            UnknownNameError: if there is none; the message lists the names there are.
        """
        self._check(name)
        return self._entries[name]

    def example(self, name: str) -> Callable[..., Any]:
        """The function that builds a representative instance of that entry."""
        self._check(name)
        return self._examples[name]

    def _check(self, name: str) -> None:
        load_plugins()
        if name not in self._entries:
            failed = [report.name for report in load_plugins() if report.error is not None]
            hint = f" Plugins that failed to load: {', '.join(failed)}." if failed else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; expected one of {', '.join(self.names())}.{hint}"
            )


FIELDS = Registry("field")
"""Fields and update rules: made from a loss."""

SOLVERS = Registry("solver")
"""Solvers: `Solver` instances."""

ADJOINTS = Registry("adjoint")
"""Adjoints: `LocalAdjoint` or `WholeAdjoint` instances."""

CHECKPOINTS = Registry("checkpoint schedule")
"""Checkpoint schedules."""

METHODS = Registry("method")
"""Meta-learning methods: `METHODS.get(name)(loss, outer_loss=None, **settings)` is a `Method`."""

_reports: list[PluginReport] | None = None


def load_plugins() -> list[PluginReport]:
    """Import every module of the entry-point group `odeopt.plugins`, once.

    A module that fails to import is reported and brings nothing else down.
    """
    global _reports  # noqa: PLW0603  (loaded once per process)
    if _reports is None:
        _reports = []  # set first: a plugin may look up a name while it is being imported
        _reports.extend(_load(point) for point in entry_points(group=ENTRY_POINT_GROUP))
    return list(_reports)


def _load(point: EntryPoint) -> PluginReport:
    known = point.dist
    source = ("unknown", "unknown") if known is None else (known.name, known.version)
    try:
        importlib.import_module(point.module)
    except (Exception, SystemExit) as error:  # third-party code is reported, not let through
        message = f"{type(error).__name__}: {error}"
        return PluginReport(point.name, point.value, *source, message)
    return PluginReport(point.name, point.value, *source, None)


def _origin(entry: Callable[..., Any]) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
