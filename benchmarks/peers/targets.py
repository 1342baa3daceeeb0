"""The two gradients that contenders are compared with, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.peers import by_hand, problems
from benchmarks.peers.runner import FLOW, MAP, Setup

TRACED = 200
"""RK4 steps from which tracing the kernels of the reference pays."""

MOST_STATES = 20_000
"""That the reference keeps."""


@dataclass(frozen=True)
class Aim:
    """A point at which gradients are computed.

    Attributes:
        problem: A key of `problems.PROBLEMS`.
        tasks: How many.
        steps: Of gradient descent.
        device: Where to compute.
    """

    problem: str
    tasks: int
    steps: int
    device: str

    def setup(self, dtype: torch.dtype) -> Setup:
        """The problem and its horizon."""
        found = problems.make(self.problem, self.tasks).to(torch.device(self.device), dtype)
        return Setup(found, self.steps * found.lr, self.steps)


@dataclass(frozen=True)
class Job:
    """What a process computes.

    Attributes:
        aim: The point.
        path: The file to be written.
    """

    aim: Aim
    path: str


class Targets:
    """Both targets.

    Args:
        found: By the names of `benchmarks.peers.runner`.
    """

    def __init__(self, found: dict[str, Tensor]) -> None:
        self._found = found

    @classmethod
    def read(cls, path: Path) -> Targets:
        """What a process has written."""
        return cls(torch.load(path, weights_only=True))

    def errors(self, gradient: Tensor) -> dict[str, float]:
        """The relative error to each."""
        own = gradient.detach().double().cpu()
        return {
            name: ((own - target).norm() / target.norm()).item()
            for name, target in self._found.items()
        }


def compute(setup: Setup) -> tuple[dict[str, Tensor], float]:
    """Both targets of a setup in float64, and the error of that of the flow.

    The map's is the hand-written adjoint loop; the flow's is RK4 with its exact adjoint, with the
    error of order 4 that half the steps tell.
    """
    exact = by_hand.vmap_adjoint(setup, None)
    found = {MAP: exact.run(exact.steps).gradient}
    steps = 2 * max(1, round(setup.t1 / setup.problem.reference_step / 2))
    fine, coarse = flow(setup, (steps, steps // 2), "trace" if steps >= TRACED else None)
    found[FLOW] = fine
    own = ((coarse - fine).norm() / fine.norm()).item() / 15
    return {name: gradient.cpu() for name, gradient in found.items()}, own


def flow(setup: Setup, counts: Sequence[int], compile: str | None) -> list[Tensor]:
    """The gradient of the flow by RK4, once for each number of steps.

    Args:
        setup: The problem and the horizon.
        counts: Numbers of steps.
        compile: How kernels are run.
    """
    problem = setup.problem
    opt = odeopt.ODEOptimizer(
        odeopt.GradientFlow(problem.loss), odeopt.RK4(),
        checkpoints=odeopt.Binomial(min(max(counts), MOST_STATES)), compile=compile,
    )  # fmt: skip
    call = opt.value_and_grad(problem.loss, tasks=True)
    layout = problem.raveled()[1]

    def gradient(steps: int) -> Tensor:
        grid = odeopt.TimeGrid.uniform(setup.t1, steps)
        result = call(problem.params, problem.tasks.train, grid, problem.tasks.validation)
        return layout.flatten(result.grads.params, "gradient")

    return [gradient(steps) for steps in counts]


def write(job: Job) -> dict[str, Any]:
    """Write the targets of a job into its file."""
    found, own = compute(job.aim.setup(torch.float64))
    torch.save(found, job.path)
    return {"reference_error": own}
