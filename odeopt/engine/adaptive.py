"""Steps chosen on the way, recorded so that the backward sweep can take the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.engine.kernels import Kernels
from odeopt.engine.stats import Stats
from odeopt.engine.steppers import FixedStepper, Stepper
from odeopt.errors import CompatibilityError, StepLimitError
from odeopt.grid import TimeGrid
from odeopt.solver.error_control import Attempt, ErrorControlled


@dataclass(frozen=True, eq=False)
class Refinement:
    """Accepted steps as parts of the intervals of the user's grid.

    Attributes:
        times: start of each step, shape [n] or [tasks, n], float64.
        dt: length of each step.
        parents: the interval of the user's grid that each step belongs to, n integers.
        stages: the number of stages of each step, where the solver chose them; else empty.
    """

    times: Tensor
    dt: Tensor
    parents: list[int]
    stages: tuple[int, ...] = ()

    def to_grid(self, grid: TimeGrid) -> TimeGrid:
        """The accepted steps as a grid."""
        end = grid.times[..., -1:]
        return TimeGrid(torch.cat([self.times, end], dim=-1), dt=self.dt)

    def pull(self, grid: TimeGrid, g_t: Tensor, g_dt: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients w.r.t. the user's grid: each step keeps its share of its interval."""
        parents = torch.tensor(self.parents, device=g_t.device)
        length = grid.dt[..., parents]
        safe = torch.where(length > 0, length, torch.ones_like(length))
        share = (self.dt / safe).to(g_t.dtype)
        lead = ((self.times - grid.times[..., parents]) / safe).to(g_t.dtype)
        zero = torch.zeros_like(grid.dt, dtype=g_t.dtype)
        return (
            zero.index_add(-1, parents, g_t),
            zero.index_add(-1, parents, share * g_dt + lead * g_t),
        )


class AdaptiveStepper(Stepper):
    """Attempts steps until one is accepted, and records those that were.

    A task whose step size underflows gets a state of NaN, and takes no more part.
    """

    def __init__(
        self, kernels: Kernels, solver: ErrorControlled, grid: TimeGrid, y0: Tensor, stats: Stats
    ) -> None:
        _check_values_visible(solver, y0)
        self.length = 0 if grid.steps == 0 else None
        self._solver, self._grid, self._stats, self._dtype = solver, grid, stats, y0.dtype
        self._tolerances = solver.tolerances
        self._kernels = kernels
        self._attempt = kernels.attempt()
        times = grid.times if kernels.tasks is None else grid.times.expand(kernels.tasks, -1)
        self._targets = times.unbind(-1)
        self._parent = 0
        self._t = self._targets[0]
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._parents: list[int] = []
        self._attempts = 0
        if grid.steps > 0:
            self._start(y0)

    @property
    def refinement(self) -> Refinement:
        """The accepted steps."""
        starts = torch.stack([t for t, _ in self._steps], dim=-1)
        lengths = torch.stack([dt for _, dt in self._steps], dim=-1)
        return Refinement(starts, lengths, list(self._parents))

    @override
    def advance(self, k: int, y: Tensor) -> Tensor:
        """Steps of tasks whose attempt was rejected have zero length."""
        while True:
            target = self._targets[self._parent + 1]
            lands = self._t + self._dt * (1 + 1e-9) >= target
            dt = torch.where(lands, target - self._t, self._dt)
            tried, error = self._try(dt, y)
            accepted = ((error <= 1) & torch.isfinite(tried.y).all(-1)) | self._failed
            self._adapt(error, accepted, lands, dt)
            if bool((accepted & (dt > 0)).any()) or not bool((dt > 0).any()):
                return self._accept(tried, accepted, lands, dt, y)

    @override
    def time(self, k: int) -> Tensor:
        return self._t if k == len(self._steps) else self._steps[k][0]

    @override
    def grid_index(self, k: int) -> int | None:
        position = grid_index(self._parents, k)
        return None if position is None or position > self._parent else position

    def _start(self, y0: Tensor) -> None:
        start = self._t.to(self._dtype)
        self._slope = self._kernels.velocity()(start, y0)
        dt = self._kernels.initial_dt()(start, y0, self._slope).to(torch.float64)
        self._stats.gradient_evaluations += 2 if self._tolerances.first_step is None else 1
        self._dt = self._tolerances.controller.pool(dt)
        self._previous = torch.ones_like(self._dt)
        self._failed = torch.zeros_like(self._dt, dtype=torch.bool)

    def _try(self, dt: Tensor, y: Tensor) -> tuple[Attempt, Tensor]:
        self._count_attempt()
        tried = self._attempt(self._t.to(self._dtype), dt.to(self._dtype), y, self._slope)
        self._stats.gradient_evaluations += self._solver.attempt_gradients
        error = torch.where(dt > 0, tried.error.to(torch.float64), torch.zeros_like(dt))
        return tried, self._tolerances.controller.pool(error)

    def _count_attempt(self) -> None:
        self._attempts += 1
        limit = self._tolerances.max_steps
        if self._attempts > limit:
            raise StepLimitError(
                f"{type(self._solver).__name__} made {limit} attempts and is at t ="
                f" {self._t.min().item():g} of {self._targets[-1].max().item():g}: raise max_steps"
                " or the tolerances, or shorten the horizon."
            )

    def _adapt(self, error: Tensor, accepted: Tensor, lands: Tensor, dt: Tensor) -> None:
        controller = self._tolerances.controller
        factor = controller.factor(error, self._previous, self._solver.error_order)
        proposal = dt * factor
        shortened = accepted & lands
        proposal = torch.where(shortened, torch.maximum(proposal, self._dt), proposal)
        self._dt = torch.where(dt > 0, proposal, self._dt)
        self._previous = torch.where(accepted & (dt > 0), error.clamp(min=1e-4), self._previous)
        self._failed = self._failed | ~(self._dt >= 1e-14 * (1 + self._t.abs()))  # NaN too
        self._dt = torch.where(self._failed, torch.full_like(self._dt, torch.inf), self._dt)

    def _accept(
        self, tried: Attempt, accepted: Tensor, lands: Tensor, dt: Tensor, y: Tensor
    ) -> Tensor:
        moved = accepted & (dt > 0)
        taken = torch.where(moved, dt, torch.zeros_like(dt))
        self._steps.append((self._t, taken))
        self._parents.append(self._parent)
        target = self._targets[self._parent + 1]
        self._t = torch.where(moved, torch.where(lands, target, self._t + dt), self._t)
        self._slope = torch.where(moved[..., None], tried.slope, self._slope)
        if bool((self._t >= target).all()):
            self._parent += 1
        if self._parent == self._grid.steps:
            self.length = len(self._steps)
        lost = torch.full_like(y, torch.nan)
        after = torch.where(self._failed[..., None], lost, tried.y)
        return torch.where(moved[..., None], after, y)


class RefinedStepper(FixedStepper):
    """The accepted steps of an adaptive solve, taken as fixed ones."""

    def __init__(
        self,
        kernels: Kernels,
        grid: TimeGrid,
        refinement: Refinement,
        dtype: torch.dtype,
        stats: Stats,
    ) -> None:
        super().__init__(kernels, refinement.to_grid(grid), dtype, stats)
        self.refinement = refinement
        self._made = refinement.dt > 0  # a task waits for the others in steps of zero length

    @override
    def stages_at(self, k: int) -> int | None:
        return self.refinement.stages[k] if self.refinement.stages else None

    @override
    def grid_index(self, k: int) -> int | None:
        return grid_index(self.refinement.parents, k)


def grid_index(parents: list[int], k: int) -> int | None:
    """The index in the user's grid of the state after k accepted steps, None between two."""
    if k == 0:
        return 0
    if k < len(parents) and parents[k] == parents[k - 1]:
        return None
    return parents[k - 1] + 1


def _check_values_visible(solver: ErrorControlled, y0: Tensor) -> None:
    try:
        bool(torch.isfinite(y0).any())
    except RuntimeError as error:
        raise CompatibilityError(
            f"{type(solver).__name__} chooses steps from values, which torch.func.vmap hides. Use"
            " tasks=True instead of vmap around the solve, or a solver with fixed steps."
        ) from error
