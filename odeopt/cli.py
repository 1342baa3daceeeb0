"""What `python -m odeopt` can do: say which plugins there are and what they registered."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from itertools import takewhile
from typing import Annotated, Any

import typer

import odeopt
from odeopt.registry import (
    ADJOINTS,
    BACKENDS,
    CHECKPOINTS,
    ENTRY_POINT_GROUP,
    FIELDS,
    METHODS,
    SOLVERS,
    PluginReport,
    Registry,
    load_plugins,
)
from odeopt.tools.plugins import UNKNOWN, read

REGISTRIES = (FIELDS, SOLVERS, ADJOINTS, CHECKPOINTS, BACKENDS, METHODS)
WIDTH = 80
"""Of a line that is printed, where the columns before the last leave room for that."""

NARROWEST = 20
"""What the last column has in any case."""

LONGEST = 500
"""Of an error that is printed."""

app = typer.Typer(add_completion=False, no_args_is_help=True)


def show_version(wanted: bool) -> None:
    """Print the version and stop, where it is asked for."""
    if wanted:
        typer.echo(f"odeopt {odeopt.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Differentiate through long inner optimisations."""


@app.command()
def plugins() -> None:
    """List the plugins and all that is registered; exit status 1 if a plugin failed to load."""
    reports = load_plugins()
    typer.echo(f"Plugins (entry points of the group {ENTRY_POINT_GROUP}):\n")
    head = ("name", "module", "distribution", "version", "status")
    typer.echo(aligned([head, *map(_plugin_row, reports)]))
    typer.echo("\nRegistered:")
    for registry in REGISTRIES:
        head = (registry.kind, "package", "from")
        typer.echo("\n" + aligned([head, *_entry_rows(registry, reports)]))
    if any(report.error is not None for report in reports):
        raise typer.Exit(1)


class Wrapper(textwrap.TextWrapper):
    """Breaks lines at blanks and inside of dotted names."""

    wordsep_simple_re = re.compile(r"(\s+|(?<=[.:])(?=\w))")


def aligned(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells as text: columns as wide as their longest cell, the last one wrapped."""
    rows = list(rows)
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)][:-1]
    wrapper = Wrapper(max(WIDTH - sum(widths), NARROWEST), break_on_hyphens=False)
    lines: list[str] = []
    for *cells, last in rows:
        start = "".join(map(str.ljust, cells, widths))
        for part in wrapper.wrap(last) or [""]:
            lines.append((start + part).rstrip())
            start = " " * len(start)
    return "\n".join(lines)


def source(entry: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name of a class or a factory (of its function, if partial)."""
    while isinstance(entry, partial):
        entry = entry.func
    return _own_or_of_type(entry, "__module__"), _own_or_of_type(entry, "__qualname__")


def distribution_of(module: str, reports: Iterable[PluginReport]) -> str:
    """The distribution of the plugin that shares most of the module's dotted name; "-" if none."""
    plugins = [(report.module.partition(":")[0], report.distribution) for report in reports]
    nearest = max([("odeopt", "odeopt"), *plugins], key=lambda known: _shared(known[0], module))
    return nearest[1] if _shared(nearest[0], module) > 0 else "-"


def _own_or_of_type(entry: object, attribute: str) -> str:
    own = read(entry, attribute)
    return own if own != UNKNOWN else read(type(entry), attribute)


def _shared(one: str, other: str) -> int:
    """How many leading parts two dotted names have in common."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _plugin_row(report: PluginReport) -> tuple[str, ...]:
    error = report.error
    status = "loaded" if error is None else f"failed: {textwrap.shorten(error, LONGEST)}"
    return report.name, report.module, report.distribution, report.version, status


def _entry_rows(registry: Registry, reports: list[PluginReport]) -> Iterable[tuple[str, ...]]:
    for name in registry.names():
        module, qualname = source(registry.get(name))
        yield name, distribution_of(module, reports), f"{module}:{qualname}"
