"""Where the next state comes from: known steps, or states that a library has computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import LocalAdjoint
from odeopt.engine.kernels import Kernels, PullResult, Scalars
from odeopt.engine.stats import Stats
from odeopt.errors import CompatibilityError
from odeopt.grid import TimeGrid
from odeopt.solver.base import GridSolver
from odeopt.solver.dynamics import Theta
from odeopt.tools import tree


@dataclass(frozen=True, eq=False)
class Refinement:
    """Steps that a solver has put between the times of the user's grid.

    Attributes:
        times: start of each step, shape [n] or [tasks, n], float64.
        dt: length of each step.
        parents: the interval of the user's grid that each step belongs to, n integers.
        methods: what made each step, as `Solver.made_with` takes it, where the solver has a choice;
            else empty.
    """

    times: Tensor
    dt: Tensor
    parents: list[int]
    methods: tuple[int, ...] = ()

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
        zero = g_t.new_zeros((*g_t.shape[:-1], grid.steps))
        return (
            zero.index_add(-1, parents, g_t),
            zero.index_add(-1, parents, share * g_dt + lead * g_t),
        )


def grid_index(parents: list[int], k: int) -> int | None:
    """The index in the user's grid of the state after k accepted steps, None between two."""
    if k == 0:
        return 0
    if k < len(parents) and parents[k] == parents[k - 1]:
        return None
    return parents[k - 1] + 1


@dataclass(frozen=True, eq=False)
class Waiting:
    """The tasks that wait for others during one step: nothing changes, whatever is evaluated.

    Attributes:
        tasks: whether each of them waits, shape [] or [tasks].
        length_counts: whether the gradient w.r.t. the length of the step is that of a step which
            begins to be made; else it is zero.
    """

    tasks: Tensor
    length_counts: bool

    def keep(self, before: Tensor, after: Tensor) -> Tensor:
        """The state before for tasks that wait, the state after for the others."""
        return torch.where(self.tasks[..., None], before, after)

    def pull(self, lam: Tensor, pulled: PullResult) -> PullResult:
        """The pull over the step; nothing but lam itself for tasks that wait."""
        own = Scalars.of(pulled.scalars)
        zero, norm = torch.zeros_like(own.dt), torch.linalg.vector_norm(lam, dim=-1)
        counts = torch.isfinite(own.dt) & self.length_counts
        still = Scalars(zero, torch.where(counts, own.dt, zero), zero, zero, zero, norm)
        lead = norm.ndim - self.tasks.ndim  # 1 with many outer losses
        zeroed = partial(tree.zero_unless, ~self.tasks, lead=lead)
        return PullResult(
            self.keep(lam, pulled.lam),
            Theta(*(tuple(map(zeroed, part)) for part in pulled.theta)),
            self.keep(torch.stack(still, dim=-1), pulled.scalars),
        )


class Waits:
    """Which tasks wait in which steps.

    Args:
        tasks: whether each of them waits, shape [steps] or [tasks, steps].
        length_counts: see `Waiting`.
    """

    def __init__(self, tasks: Tensor, length_counts: bool) -> None:
        self._tasks, self._length_counts = tasks, length_counts
        steps = tasks.shape[-1]
        try:
            self._some: list[bool] = tasks.reshape(-1, steps).any(0).tolist()
        except RuntimeError:  # a transform hides the values
            self._some = [True] * steps

    def between(self, start: int, stop: int) -> Waiting | None:
        """The tasks that wait between two states; None if none does."""
        if not all(self._some[start:stop]):
            return None
        return Waiting(self._tasks[..., start:stop].all(-1), self._length_counts)


class Stepper(ABC):
    """Makes the steps of one forward sweep; indices count its own steps."""

    saves: bool = True
    """Whether the sweep can be interrupted at any step and go on from there."""

    @property
    @abstractmethod
    def length(self) -> int | None:
        """The number of steps; None until an adaptive solve has finished."""

    @abstractmethod
    def advance(self, k: int, y: Tensor) -> Tensor:
        """The state k + 1 from the state k."""

    @abstractmethod
    def settled(self) -> SettledStepper:
        """A finished sweep's steps, to be taken again."""

    @abstractmethod
    def time(self, k: int) -> Tensor:
        """The time of state k, shape [] or [tasks]."""

    @abstractmethod
    def grid_index(self, k: int) -> int | None:
        """The index in the user's grid of state k, or None where it lies between two."""


class SettledStepper(Stepper):
    """Steps of known lengths, which a backward sweep can take again.

    If a step of zero length may move something, tasks wait only where they make no more steps
    (`TimeGrid.stops`), else wherever the length is zero.

    Args:
        grid: the steps.
        moves_at_zero: whether a step of zero length may move something.
        made: whether each step is made, shape [steps] or [tasks, steps]; by default all up to the
            stops of the grid.
    """

    refinement: Refinement | None = None
    """What the solver has put between the times of the grid; None if nothing."""

    def __init__(self, grid: TimeGrid, moves_at_zero: bool, made: Tensor | None = None) -> None:
        self._is_made = _up_to_stops(grid) if made is None else made
        self._length = grid.steps
        self.waits = Waits(~self._is_made if moves_at_zero else grid.dt == 0, not moves_at_zero)

    @property
    @override
    def length(self) -> int:
        return self._length

    @abstractmethod
    def interval(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The start and the length of the interval between two states, in the state's dtype."""

    def left_out(self, adjoint: LocalAdjoint) -> Tensor:
        """Whether an adjoint leaves each step out, shape [steps] or [tasks, steps].

        Each task counts the steps that it makes.

        Raises:
            CompatibilityError: if a transform hides the values.
        """
        made = self._is_made
        try:
            counts: list[int] = made.sum(-1).reshape(-1).tolist()
        except RuntimeError as error:
            raise CompatibilityError(
                "how many steps each task makes is hidden by torch.func.vmap, but the adjoint"
                " counts them: pass tasks=True in place of vmap around the solve, or use"
                " DiscreteAdjoint()."
            ) from error
        firsts = torch.tensor([adjoint.first_step(n) for n in counts], device=made.device)
        before = made.cumsum(-1) - made.long()
        return before < firsts.reshape(made.shape[:-1])[..., None]

    def method_at(self, k: int) -> int | None:
        """What makes step k, where the solver has a choice; see `Solver.made_with`."""
        steps = self.refinement
        return steps.methods[k] if steps is not None and steps.methods else None

    @override
    def settled(self) -> SettledStepper:
        return self

    @override
    def grid_index(self, k: int) -> int | None:
        return k if self.refinement is None else grid_index(self.refinement.parents, k)


class FixedStepper(SettledStepper):
    """Steps of a known grid, or the accepted steps of an adaptive solve."""

    def __init__(
        self,
        kernels: Kernels,
        grid: TimeGrid,
        dtype: torch.dtype,
        stats: Stats,
        refinement: Refinement | None = None,
    ) -> None:
        made = None
        if refinement is not None:  # a task waits for the others in steps of zero length
            grid, made = refinement.to_grid(grid), refinement.dt > 0
        super().__init__(grid, kernels.step_solver.moves_at_zero, made)
        self.refinement, self._stats, self._dtype = refinement, stats, dtype
        self._times = grid.times
        starts = _step_indices(grid) if kernels.solver.takes_rules else grid.times
        self._starts = _apart(starts, dtype)
        self._lengths = _apart(grid.dt, dtype)

        @cache
        def step_of(method: int | None) -> tuple[Callable[..., Tensor], int]:
            own = kernels.at(method)
            return own.step(), own.step_solver.stages

        self._step_of = step_of

    @override
    def advance(self, k: int, y: Tensor) -> Tensor:
        step, stages = self._step_of(self.method_at(k))
        self._stats.gradient_evaluations += stages
        y1 = step(k, self._starts[k], self._lengths[k], y)
        waiting = self.waits.between(k, k + 1)
        return y1 if waiting is None else waiting.keep(y, y1)

    @override
    def time(self, k: int) -> Tensor:
        return self._starts[k]

    @override
    def interval(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        if stop == start + 1:
            return self._starts[start], self._lengths[start]
        length = self._times[..., stop] - self._times[..., start]
        return self._starts[start], length.to(self._dtype)


class GridStepper(SettledStepper):
    """States at grid times, computed in one go by a library when the first is asked for."""

    saves = False

    def __init__(self, kernels: Kernels, grid: TimeGrid, y0: Tensor, stats: Stats) -> None:
        super().__init__(grid, moves_at_zero=False)
        self._kernels, self._grid, self._y0, self._stats = kernels, grid, y0, stats
        self._states: Tensor | None = None
        self._places: list[int] = []

    @override
    def advance(self, k: int, y: Tensor) -> Tensor:
        states = self._solve() if self._states is None else self._states
        return states[self._places[k + 1]].clone()

    @override
    def time(self, k: int) -> Tensor:
        return self._grid.times[..., k]

    @override
    def interval(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        t, length = self.time(start), self.time(stop) - self.time(start)
        return t.to(self._y0.dtype), length.to(self._y0.dtype)

    def _solve(self) -> Tensor:
        solver, tasks = self._kernels.solver, self._kernels.tasks
        assert isinstance(solver, GridSolver), "chosen by type"
        times = _common_times(self._grid, type(solver).__name__).to(self._y0.dtype)
        moments, places = torch.unique_consecutive(times, return_inverse=True)
        velocity = self._kernels.velocity()
        shared = velocity if tasks is None else lambda t, y: velocity(t.expand(tasks), y)
        self._states, evaluations = solver.solve(shared, moments, self._y0)
        self._places = places.tolist()
        self._stats.gradient_evaluations += evaluations
        return self._states


def _up_to_stops(grid: TimeGrid) -> Tensor:
    """Whether each step is made, shape [steps] or [tasks, steps]."""
    if grid.stops is None:
        return torch.ones_like(grid.dt, dtype=torch.bool)
    return torch.arange(grid.steps, device=grid.dt.device) < grid.stops[..., None]


def _apart(times: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A tensor for each step, contiguous, so that no kernel has to copy it."""
    if times.stride(-1) == 0 and times.shape[-1]:  # one number for all steps, as in `from_lr`
        return (times[..., 0].to(dtype).contiguous(),) * times.shape[-1]
    return times.to(dtype).movedim(-1, 0).contiguous().unbind(0)


def _step_indices(grid: TimeGrid) -> Tensor:
    """0, 1, ..., N in place of times, of the shape of the times."""
    indices = torch.arange(grid.steps + 1, device=grid.times.device, dtype=torch.float64)
    return indices.expand_as(grid.times)


def _common_times(grid: TimeGrid, solver: str) -> Tensor:
    if grid.tasks is None:
        return grid.times
    if not bool((grid.times == grid.times[0]).all()):
        raise CompatibilityError(
            f"{solver} stacks the tasks into one state, so that they share the grid, but the"
            " horizons differ. Use Adaptive(rtol, atol), which gives each task its own steps."
        )
    return grid.times[0]
