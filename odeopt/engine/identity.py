"""What makes a solve the one that it is, as text that another process can compare."""

from __future__ import annotations

from torch import Tensor

from odeopt.engine.choices import Choices
from odeopt.engine.kernels import Kernels
from odeopt.engine.problem import Problem
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper
from odeopt.inner.rule import UpdateRule
from odeopt.tools.describing import describe
from odeopt.tools.packing import digest
from odeopt.tools.version import versions


def identify(choices: Choices, problem: Problem, kernels: Kernels) -> dict[str, str]:
    """The parts of a solve by name; it costs one evaluation of the velocity.

    Raises:
        CompatibilityError: if a choice holds an object about which nothing can be said.
    """
    theta, data, stream = problem.theta, problem.data, problem.stream
    own = (None, None) if stream is None else (stream.seed, stream.length)
    stops = () if problem.grid.stops is None else (problem.grid.stops,)
    grid = [problem.grid.times, problem.grid.dt, *stops]
    chosen = {
        "the field": choices.field,
        "the solver": choices.solver,
        "the adjoint": choices.adjoint,
        "the checkpoints": choices.checkpoints,
        "the compilation": choices.compiler,
    }
    return {
        "the version or device": f"{versions()}, {problem.y0.device}",
        **{name: describe(choice, name) for name, choice in chosen.items()},
        "the initial state": digest([problem.y0]),
        "the hparams": digest([*theta.shared, *data.shared]),
        "the batch": digest([*theta.batch, *data.batch]) + describe(own),
        "the grid": digest(grid) + describe(problem.grid.observe),
        "what the loss computes": digest([_first_step(choices, problem, kernels)]),
    }


def _first_step(choices: Choices, problem: Problem, kernels: Kernels) -> Tensor:
    """Numbers in which another loss, or another number captured by it, would be seen."""
    y0, grid = problem.y0, problem.grid
    if isinstance(choices.field, UpdateRule) or problem.stream is not None:
        return FixedStepper(kernels, grid, y0.dtype, Stats()).advance(0, y0)
    return kernels.velocity()(grid.times[..., 0].to(y0.dtype), y0)
