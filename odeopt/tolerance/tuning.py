"""What has been learnt, by horizon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.checkpoint.uniform import Every
from odeopt.engine.choices import Choices
from odeopt.engine.compile.compiler import Compiler
from odeopt.engine.safety import Safety
from odeopt.grid import TimeGrid
from odeopt.inner.field import Field, GradientField
from odeopt.tolerance.search import Search, size
from odeopt.tolerance.setting import FIXED, Setting, horizon, landmarks

ALIKE = 1.3
"""Horizons whose logarithms to this base round to the same number share what is known."""


class Tuning:
    """The settings of one optimiser, by horizon."""

    def __init__(self, field: Field, tol: float, safety: Safety, compile: str | None) -> None:
        self.tol = tol
        self._field, self._safety, self._compile = field, safety, compile
        self._compilers: dict[str, Compiler] = {}
        self._searches: dict[tuple[object, ...], Search] = {}
        self._watched: set[object] = set()

    def settings(self) -> Mapping[str, Any]:
        """What tells two of them apart: not what has been learnt so far."""
        return {
            "field": self._field, "tol": self.tol, "safety": self._safety, "compile": self._compile,
        }  # fmt: skip

    def search(self, grid: TimeGrid, tasks: bool) -> Search:
        """What is known of solves over such a horizon."""
        kind = _kind(grid, tasks)
        if kind not in self._searches:
            self._searches[kind] = self._begin()
        return self._searches[kind]

    def choices(self, setting: Setting) -> Choices:
        """The choices of a setting; kernels are compiled once per method."""
        compiler = self._compilers.get(setting.method)
        if compiler is None and self._compile is not None:
            compiler = self._compilers[setting.method] = Compiler(self._compile)
        return Choices(
            self._field, setting.solver, DiscreteAdjoint(), Every(1), self._safety, compiler,
            self._watched,
        )  # fmt: skip

    def error_controlled(self) -> Setting:
        """What chooses steps by their errors, where nothing is known of the horizon."""
        return Setting(self._robust, 100 / self.tol)

    def describe(self) -> str:
        """A line per horizon, and one per method that was measured."""
        lines = [_describe(*item) for item in self._searches.items()]
        return "\n".join(lines or ["nothing has been solved yet"])

    @property
    def _robust(self) -> str:
        """The method that chooses its steps; of a symmetric Jacobian the spectrum is real."""
        return "stabilized-rk" if isinstance(self._field, GradientField) else "adaptive"

    def _begin(self) -> Search:
        symmetric = isinstance(self._field, GradientField)
        fixed = [name for name, solver in FIXED.items() if symmetric or not solver.real_spectrum]
        return Search(self.tol, self._robust, fixed)


def _kind(grid: TimeGrid, tasks: bool) -> tuple[object, ...]:
    """Solves of one kind share what is known: horizons within about 15 %."""
    length = horizon(grid)
    bucket = round(math.log(length) / math.log(ALIKE)) if length > 0 else None
    return (bucket, tasks, len(landmarks(grid)))


def _describe(kind: tuple[object, ...], search: Search) -> str:
    bucket, working = kind[0], search.working
    length = f"{ALIKE**bucket:.3g}" if isinstance(bucket, int) else "0"
    if working is None:
        return f"T of about {length}: nothing has met the tolerance yet"
    lines = [
        f"T of about {length}: {working.setting}, the cheapest that was measured; estimated error"
        f" {size(working.error):.1e}"
    ]
    for kept in sorted(search.measured.values(), key=lambda kept: kept.cost):
        lines.append(f"  {kept.setting}: cost {kept.cost}, estimated error {size(kept.error):.1e}")
    return "\n".join(lines)
