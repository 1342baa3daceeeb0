"""What `python -m odeopt` can do: say which plugins there are and what they registered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

import typer

import odeopt
from odeopt.registry import (
    ADJOINTS,
    CHECKPOINTS,
    ENTRY_POINT_GROUP,
    FIELDS,
    METHODS,
    SOLVERS,
    PluginReport,
    load_plugins,
)

REGISTRIES = (FIELDS, SOLVERS, ADJOINTS, CHECKPOINTS, METHODS)

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
    typer.echo("\nRegistered:\n")
    typer.echo(aligned([("kind", "name", "from", "distribution"), *_entry_rows(reports)]))
    if any(report.error is not None for report in reports):
        raise typer.Exit(1)


def aligned(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows of cells as text, each column as wide as its longest cell."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def source(entry: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name of a class or a factory (of its function, if partial)."""
    while isinstance(entry, partial):
        entry = entry.func
    kind: type[Any] = type(entry)
    return (
        getattr(entry, "__module__", kind.__module__),
        getattr(entry, "__qualname__", kind.__qualname__),
    )


def distribution_of(module: str, reports: Iterable[PluginReport]) -> str:
    """The distribution of the plugin that shares most of the module's dotted name; "-" if none."""
    plugins = [(report.module.partition(":")[0], report.distribution) for report in reports]
    nearest = max([("odeopt", "odeopt"), *plugins], key=lambda known: _shared(known[0], module))
    return nearest[1] if _shared(nearest[0], module) > 0 else "-"


def _shared(one: str, other: str) -> int:
    """How many leading parts two dotted names have in common."""
    count = 0
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _plugin_row(report: PluginReport) -> tuple[str, ...]:
    error = report.error
    status = "loaded" if error is None else f"failed: {' '.join(error.split())}"
    return report.name, report.module, report.distribution, report.version, status


def _entry_rows(reports: list[PluginReport]) -> Iterable[tuple[str, ...]]:
    for registry in REGISTRIES:
        for name in registry.names():
            module, qualname = source(registry.get(name))
            origin = distribution_of(module, reports)
            yield registry.kind, name, f"{module}:{qualname}", origin
