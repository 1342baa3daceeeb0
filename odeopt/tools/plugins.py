"""Plugins: found by their entry points, imported one by one, each without harm to the others."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points

ENTRY_POINT_GROUP = "odeopt.plugins"
BUILT_IN = "odeopt_plugins"
"""The module of the plugins that come with odeopt."""

UNKNOWN = "unknown"
"""In place of what cannot be read in the metadata of a distribution."""


@dataclass(frozen=True)
class PluginReport:
    """What became of one entry point: `error` is None when its module was imported."""

    name: str
    module: str
    distribution: str
    version: str
    error: str | None


class _Journal(threading.local):
    """How to take back what the plugin that this thread is importing has registered."""

    entries: list[tuple[str, Callable[[], None]]] | None = None


class Plugins:
    """All plugins that are installed; they are loaded once."""

    def __init__(self) -> None:
        self._reports: list[PluginReport] | None = None
        self._so_far: list[PluginReport] | None = None  # while they are being loaded
        self._has_built_in = False
        self._loading, self._loading_built_in = threading.RLock(), threading.RLock()
        self._journal = _Journal()

    def load(self) -> list[PluginReport]:
        """What became of each; see `odeopt.registry.load_plugins`."""
        with self._loading:
            if self._reports is None and self._so_far is None:
                self._load_all()
            return list(self._reports or self._so_far or ())

    def note(self, module: str, undo: Callable[[], None]) -> None:
        """Keep in mind how to take back a registration, should this plugin fail.

        Args:
            module: the one that registers.
            undo: takes it back.
        """
        if self._journal.entries is not None:
            self._journal.entries.append((module, undo))

    def load_built_in(self) -> None:
        """Load what comes with odeopt, so that nobody else takes its names first.

        It has a lock of its own: a thread that registers while it imports a module must not wait
        for one that loads all plugins, which may be waiting for that module.
        """
        with self._loading_built_in:
            if not self._has_built_in:
                for point in _find():
                    if read(point, "module") == BUILT_IN:
                        self._load(point)  # its report is made with those of all others
                self._has_built_in = True

    def _load_all(self) -> None:
        self._so_far = []
        try:
            self.load_built_in()
            for point in _find():
                self._so_far.append(self._load(point))
            self._reports = self._so_far
        finally:
            self._so_far = None

    def _load(self, point: EntryPoint | PluginReport) -> PluginReport:
        """Import the module of an entry point, and take back what it registered if it fails."""
        if isinstance(point, PluginReport):
            return point
        before, error = set(sys.modules), None
        self._journal.entries = []
        try:
            importlib.import_module(point.module)
        except BaseException as raised:  # whatever third-party code raises
            self._take_back(self._journal.entries or [], before)
            error = describe(raised)
        finally:
            self._journal.entries = None
        source = (read(point, "dist", "name"), read(point, "dist", "version"))
        return PluginReport(read(point, "name"), read(point, "value"), *source, error)

    def _take_back(self, entries: list[tuple[str, Callable[[], None]]], modules: set[str]) -> None:
        """Undo registrations, and forget the modules that made them, so that an import does so.

        Args:
            entries: the module of each registration, and what undoes it.
            modules: those that had been imported before the plugin.
        """
        for _, undo in reversed(entries):
            undo()
        packages = {package(module) for module, _ in entries}
        for name in set(sys.modules) - modules:
            if package(name) in packages:
                sys.modules.pop(name, None)


def package(module: str) -> str:
    """The first part of a dotted name."""
    return module.partition(".")[0]


def describe(error: BaseException) -> str:
    """The type of an error and what it says, if it can say anything."""
    try:
        said = _printable(str(error))
    except BaseException:  # it is the plugin's own
        said = ""
    kind = type(error).__name__
    return f"{kind}: {said}" if said else kind


def read(thing: object, *attributes: str) -> str:
    """An attribute (of an attribute) as text; "unknown" if there is none or it cannot be read."""
    try:
        for attribute in attributes:
            thing = getattr(thing, attribute)
        return _printable(thing) if isinstance(thing, str) and thing else UNKNOWN
    except BaseException:  # metadata may come from third-party code
        return UNKNOWN


def _printable(text: str) -> str:
    """The text without halves of characters, which no terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _find() -> Iterable[EntryPoint | PluginReport]:
    """The entry points; reports instead for distributions whose entry points cannot be read."""
    try:
        return entry_points(group=ENTRY_POINT_GROUP)
    except BaseException:  # those of a single distribution are enough to make all unreadable
        return _find_one_by_one()


def _find_one_by_one() -> Iterable[EntryPoint | PluginReport]:
    seen = set[str]()
    for distribution in distributions():
        name, version = read(distribution, "name"), read(distribution, "version")
        if name in seen:  # hidden by another of that name, which is further ahead in the path
            continue
        seen.update({name} - {UNKNOWN})
        try:
            yield from distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:
            yield PluginReport(UNKNOWN, UNKNOWN, name, version, describe(error))


PLUGINS = Plugins()
