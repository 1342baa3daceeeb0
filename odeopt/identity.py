"""What makes a solve the one that it is, as digests that another process can compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from odeopt.choices import Choices
from odeopt.kernels import Kernels
from odeopt.problem import Problem
from odeopt.rule.base import UpdateRule
from odeopt.stats import Stats
from odeopt.store import Tier
from odeopt.store.digest import digest
from odeopt.sweep.stepper import FixedStepper


def identify(choices: Choices, problem: Problem, kernels: Kernels) -> dict[str, str]:
    """Digests of the parts of a solve, by name; it costs one evaluation of the velocity."""
    theta, data, stream = problem.theta, problem.data, problem.stream
    own = (None, None) if stream is None else (stream.seed, stream.length)
    return {
        "the version or device": f"{torch.__version__} {problem.y0.device}",
        "the field": describe(choices.field),
        "the solver": describe(choices.solver),
        "the adjoint": describe(choices.adjoint),
        "the checkpoints": describe(choices.checkpoints),
        "the initial state": digest([problem.y0]),
        "the hparams": digest([*theta.shared, *data.shared]),
        "the batch": digest([*theta.batch, *data.batch]) + describe(own),
        "the grid": digest([problem.grid.times, problem.grid.dt]) + describe(problem.grid.observe),
        "what the loss computes": digest([_first_step(choices, problem, kernels)]),
    }


def describe(value: Any, depth: int = 6) -> str:
    """Settings as text that does not depend on the process; foreign objects by their type."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, Tensor):
        return digest([value])
    if isinstance(value, Tier):
        return value.kind
    named = value if hasattr(value, "__qualname__") else type(value)
    parts = _parts(value) if depth > 0 else {}
    inside = ", ".join(f"{name}={describe(parts[name], depth - 1)}" for name in sorted(parts))
    return f"{named.__module__}.{named.__qualname__}({inside})"


def _parts(value: Any) -> dict[str, Any]:
    """What is in a container or in an object of ours, by name."""
    if isinstance(value, tuple | list):
        return {f"{place:09d}": part for place, part in enumerate(value)}
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    ours = type(value).__module__.split(".")[0] == "odeopt" and hasattr(value, "__dict__")
    return vars(value) if ours else {}


def _first_step(choices: Choices, problem: Problem, kernels: Kernels) -> Tensor:
    """Numbers in which another loss, or another number captured by it, would be seen."""
    y0, grid = problem.y0, problem.grid
    if isinstance(choices.field, UpdateRule) or problem.stream is not None:
        return FixedStepper(kernels, grid, y0.dtype, Stats()).advance(0, y0)
    return kernels.velocity()(grid.times[..., 0].to(y0.dtype), y0)
