"""The public API as text: every name, with its signature and those of its public methods.

Run as a script it writes tests/public_api.txt.
"""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Any

import odeopt
import odeopt.adjoint
import odeopt.checkpoint.store
import odeopt.engine.compile
import odeopt.inner
import odeopt.outer.workers
import odeopt.solver
import odeopt.testing

SNAPSHOT = Path(__file__).resolve().parents[1] / "public_api.txt"
FACES = (
    odeopt.inner, odeopt.solver, odeopt.adjoint, odeopt.checkpoint, odeopt.checkpoint.store,
    odeopt.engine.compile, odeopt.outer, odeopt.outer.workers, odeopt.testing,
)  # fmt: skip
"""What plugins are written with: the faces of packages, beside what `odeopt` itself exports."""

PLAIN = (bool, int, float, str, type(None))


def describe() -> str:
    """One line per name and method, sorted."""
    lines: list[str] = []
    for module in (odeopt, *FACES):
        for name in module.__all__:
            entry = getattr(module, name)
            if module is odeopt or getattr(odeopt, name, None) is not entry:
                lines += describe_entry(f"{module.__name__}.{name}", entry)
    return "\n".join(sorted(lines)) + "\n"


def describe_entry(name: str, entry: Any) -> list[str]:
    if inspect.isfunction(entry):
        return [name + signature(entry)]
    if not inspect.isclass(entry):
        return [f"{name}: {type(entry).__name__}"]
    if issubclass(entry, enum.Enum):
        return [f"{name}.{member.name} = {member.value}" for member in entry]
    if issubclass(entry, Exception):
        bases = ", ".join(base.__name__ for base in entry.__bases__)
        return [f"{name}({bases})"]
    own = "" if inspect.isabstract(entry) else signature(entry)
    return [name + own, *describe_members(name, entry)]


def describe_members(name: str, entry: type) -> list[str]:
    """What the class or a private base of it defines; the rest is in the line of a public base.

    What it declares is part of it: orders, costs, whether an adjoint is exact.
    """
    lines: list[str] = []
    for member, static in inspect.getmembers_static(entry):
        home = next(base for base in entry.__mro__ if member in vars(base))
        if member.startswith("_") or not home.__module__.startswith("odeopt"):
            continue
        if home is not entry and getattr(odeopt, home.__name__, None) is home:
            continue
        if isinstance(static, PLAIN):
            lines.append(f"{name}.{member} = {static!r}")
        elif isinstance(static, property):
            lines.append(f"{name}.{member} (property)")
        elif inspect.isroutine(getattr(entry, member)):
            lines.append(f"{name}.{member}{signature(getattr(entry, member))}")
    return lines


def signature(function: Any) -> str:
    """Parameters with their annotations, as they are written, and defaults."""
    found = inspect.signature(function)
    parameters = [
        p.replace(default=default(p.default), annotation=annotation(p.annotation))
        for p in found.parameters.values()
    ]
    returned = annotation(None if inspect.isclass(function) else found.return_annotation)
    return str(inspect.Signature(parameters, return_annotation=returned))


class Named:
    """Shown as its name in a signature."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def default(value: Any) -> Any:
    """A default as it is shown: plain values as they are, others by their name or type."""
    if value is inspect.Parameter.empty or isinstance(value, PLAIN) or value == ():
        return value
    if isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value):
        return value
    return Named(getattr(value, "__name__", f"<{type(value).__name__}>"))


def annotation(value: Any) -> Any:
    written = getattr(value, "__forward_arg__", value)
    return Named(written) if isinstance(written, str) else inspect.Parameter.empty


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
