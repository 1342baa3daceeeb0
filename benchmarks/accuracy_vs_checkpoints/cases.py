"""The inner problems of the suite, and gradients of many random starts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import odeopt
from benchmarks.harness.registry import Preset
from benchmarks.problems import classification, functions, models, ratings
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task, move, stack, take


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    table_4_states: tuple[int, ...]
    table_5_horizons: tuple[float, ...]
    table_5_states: tuple[int, ...]
    seeds: int  # random starts of Tables 4 and 5
    horizons: tuple[float, ...]  # longer ones
    horizon_states: tuple[int, ...]  # kept there
    horizon_seeds: int  # random starts there
    input_states: tuple[int, ...]  # kept on real inputs
    precision_steps: tuple[int, ...]  # in the work-precision diagrams
    repeats: int  # timed runs per configuration


SIZES = {
    Preset.SMOKE: Sizes((10, 20), (0.5,), (10,), 2, (1.0,), (16,), 2, (8,), (16,), 1),
    Preset.QUICK: Sizes(
        (10, 20, 50), (0.5,), (10, 50), 5, (5.0,), (8, 32), 2, (16,), (16, 64), 1
    ),
    Preset.PAPER: Sizes(
        (10, 20, 50, 100, 200, 500, 1000), (0.1, 0.3, 0.5), (10, 20, 50, 100, 200, 500), 20,
        (2.0, 5.0, 20.0, 60.0, 100.0), (32, 128, 512), 3, (8, 32, 128), (16, 32, 64, 128, 256), 2,
    ),
}  # fmt: skip

RATINGS = "movielens-small-2016"
SHOTS, VALIDATION = 10, 15

FINE = 512
"""Grid times between which nodes are chosen."""


@dataclass(frozen=True)
class Case:
    """A model, a loss, which is the inner and the outer one, and tasks by seed."""

    name: str  # for tables and keys
    problem: Problem
    task: Callable[[int], Task]
    rate: int  # RK4 steps per unit of time that make a reference

    def inputs(self, seed: int, device: torch.device) -> tuple[Parameters, Task]:
        """The initialisation and the task of a seed."""
        inputs = self.problem.model.init(seed), self.task(seed)
        return move(inputs, device, torch.float64)


def cosmixture_case() -> Case:
    """The paper's regression problem: 1185 parameters, 100 points."""
    problem = Problem(functions.MODEL, models.half_mean_square)
    return Case(
        "CosMixture (code)", problem, lambda seed: functions.COSMIXTURE.task(seed, "code"), rate=64
    )


def digits_cases() -> tuple[Case, Case]:
    """Five-way, ten-shot digits with a perceptron and with a convolutional net, both smooth."""
    perceptron = Problem(models.mlp([64, 32, 5]), models.cross_entropy)
    convolutional = Problem(models.conv_net(outputs=5), models.cross_entropy)

    def flattened(seed: int) -> Task:
        return classification.flatten(classification.task(seed))

    return (
        Case("digits (MLP)", perceptron, flattened, rate=48),
        Case("digits (conv net)", convolutional, classification.task, rate=24),
    )


def ratings_case(data: Path) -> Case:
    """One user's ratings, one-hot inputs, the paper's network 100-40-40-1."""
    table = ratings.load(RATINGS, data)
    users = table.with_at_least(SHOTS + VALIDATION)
    return Case(
        "one user's ratings",
        Problem(ratings.MODEL, models.half_mean_square),
        lambda seed: ratings.task(table, users[seed], seed, SHOTS, VALIDATION),
        rate=24,
    )


class StartGradients(NamedTuple):
    """Gradients of shape [starts, d] and what they cost."""

    gradients: Tensor
    stats: odeopt.Stats


class Starts:
    """Random starts of a case on a device: each is a task with its own initial state."""

    def __init__(self, case: Case, seeds: Sequence[int], device: torch.device) -> None:
        self.case = case
        self._states, self._tasks = stack([case.inputs(seed, device) for seed in seeds])
        self.flow = cache(self._flow)

    def gradients(self, opt: odeopt.ODEOptimizer, grid: odeopt.TimeGrid) -> StartGradients:
        """The gradient of each start's own validation loss w.r.t. its own initialisation."""
        states = {name: leaf.detach().requires_grad_() for name, leaf in self._states.items()}
        sol = opt.solve(take(self._states, 0), self._tasks.train, grid, tasks=True, state=states)
        losses = torch.func.vmap(self.case.problem.loss)(sol.params, self._tasks.validation)
        gradients = torch.autograd.grad(losses.sum(), list(states.values()))
        return StartGradients(torch.cat([leaf.flatten(1) for leaf in gradients], dim=1), sol.stats)

    def _flow(self, t1: float) -> tuple[Tensor, float]:
        """The gradient of the flow by RK4 and its exact adjoint, and its own error.

        The error is that of order 4, from the same with half the steps; the worst start counts.
        """
        steps = reference_steps(self.case, t1)
        flow = odeopt.GradientFlow(self.case.problem.loss)
        opt = odeopt.ODEOptimizer(flow, odeopt.RK4(), compile="trace")
        fine = self.gradients(opt, odeopt.TimeGrid.uniform(t1, steps)).gradients
        coarse = self.gradients(opt, odeopt.TimeGrid.uniform(t1, steps // 2)).gradients
        return fine, errors(coarse, fine).max().item() / 15

    def guarded(
        self, make: Callable[[odeopt.Safety], odeopt.ODEOptimizer], t1: float, steps: int
    ) -> dict[str, Any]:
        """Errors of an optimiser to the flow, and which guard refuses its gradient, if one does."""
        target, own = self.flow(t1)
        grid = odeopt.TimeGrid.uniform(t1, steps)
        guard, measured = "", None
        for safety in (odeopt.Safety(), odeopt.Safety.off()):
            try:
                measured = self.gradients(make(safety), grid)
                break
            except odeopt.OdeoptError as error:
                guard = guard or f"{type(error).__name__}: {error}"
                if isinstance(error, odeopt.DivergenceError):  # there is no number to show
                    break
        if measured is None:
            return {"errors": [float("nan")], "guard": guard, "reference_error": own}
        return {
            "errors": errors(measured.gradients, target).tolist(),
            "guard": guard,
            "stored_states": measured.stats.stored_states,
            "gradient_evaluations": measured.stats.gradient_evaluations,
            "hvps": measured.stats.hvps,
            "reference_error": own,
        }


def errors(gradients: Tensor, target: Tensor) -> Tensor:
    """Relative L2 errors, shape [starts]."""
    return (gradients - target).norm(dim=1) / target.norm(dim=1)


def reference_steps(case: Case, t1: float) -> int:
    """RK4 steps of the reference up to t1; half as dense beyond t1 = 20, where it costs most."""
    rate = case.rate if t1 <= 20 else case.rate / 2
    return max(64, 2 * int(rate * t1 / 2))


def flow_optimizer(
    case: Case,
    backward: odeopt.Euler | odeopt.ModifiedEuler | odeopt.RK4,
    nodes: odeopt.Density | odeopt.Graded,
    safety: odeopt.Safety | None = None,
    compile: str | None = None,
) -> odeopt.ODEOptimizer:
    """The paper's Algorithm 2 with any backward method and any choice of nodes."""
    return odeopt.ODEOptimizer(
        odeopt.GradientFlow(case.problem.loss),
        odeopt.DormandPrince(rtol=1e-10, atol=1e-12),
        odeopt.ContinuousAdjoint(backward),
        nodes,
        safety,
        compile,
    )
