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
from odeopt.solver.base import Solver
from odeopt.solver.runge_kutta import Adaptive
from odeopt.solver.stabilized import StabilizedRK
from odeopt.tolerance.course import Course
from odeopt.tolerance.pilot import Pilot
from odeopt.tolerance.setting import Setting, landmarks, longest


class Tuning:
    """The settings of one optimiser, by horizon."""

    def __init__(self, field: Field, tol: float, safety: Safety, compile: str | None) -> None:
        self.tol = tol
        self._field, self._safety, self._compile = field, safety, compile
        self._compilers: dict[str, Compiler] = {}
        self._courses: dict[tuple[object, ...], Course] = {}
        self._watched: set[object] = set()

    def settings(self) -> Mapping[str, Any]:
        """What tells two of them apart: not what has been learnt so far."""
        return {
            "field": self._field, "tol": self.tol, "safety": self._safety, "compile": self._compile,
        }  # fmt: skip

    @property
    def real_spectrum(self) -> bool:
        """Whether the Jacobian of the field is symmetric."""
        return isinstance(self._field, GradientField)

    def known(self, grid: TimeGrid, tasks: bool) -> Course | None:
        """What is known of solves over such a horizon."""
        return self._courses.get(_kind(grid, tasks))

    def forget(self, grid: TimeGrid, tasks: bool) -> None:
        """Begin anew with the next solve over such a horizon."""
        self._courses.pop(_kind(grid, tasks), None)

    def begin(self, grid: TimeGrid, tasks: bool, pilot: Pilot) -> Course:
        """The first solve over a horizon."""
        course = Course(pilot, self.tol)
        self._courses[_kind(grid, tasks)] = course
        return course

    def choices(self, setting: Setting) -> Choices:
        """The choices of a setting; kernels are compiled once per method."""
        compiler = None
        if self._compile is not None:
            compiler = self._compilers.setdefault(setting.method, Compiler(self._compile))
        return Choices(
            self._field, setting.solver, DiscreteAdjoint(), Every(1), self._safety, compiler,
            self._watched,
        )  # fmt: skip

    def error_controlled(self) -> Solver:
        """What chooses steps by their errors, where nothing is known of the horizon."""
        rtol, atol = 0.1 * self.tol, 1e-3 * self.tol
        return StabilizedRK(rtol, atol) if self.real_spectrum else Adaptive(rtol, atol)

    def describe(self) -> str:
        """A line per horizon."""
        lines = [_describe(*item) for item in self._courses.items()]
        return "\n".join(lines or ["nothing has been solved yet"])


def _kind(grid: TimeGrid, tasks: bool) -> tuple[object, ...]:
    """Solves of one kind share what is known: horizons within about 15 %."""
    horizon = longest(grid)
    bucket = round(math.log(horizon) / math.log(1.3)) if horizon > 0 else None
    return (bucket, tasks, len(landmarks(grid)))


def _describe(kind: tuple[object, ...], course: Course) -> str:
    bucket = kind[0]
    horizon = f"{1.3**bucket:.3g}" if isinstance(bucket, int) else "0"
    error = course.error
    found = "not estimated yet" if error is None else f"{error.params:.1e}"
    setting = course.usable or course.setting
    return f"T of about {horizon}: {setting}, since {course.why}; estimated error {found}"
