"""Where the next state comes from: fixed steps, or states that a library has computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.adjoint.base import LocalAdjoint
from odeopt.engine.kernels import Kernels
from odeopt.engine.refinement import Refinement
from odeopt.engine.stats import Stats
from odeopt.engine.waiting import Waiting, Waits, left_out, made
from odeopt.errors import CompatibilityError
from odeopt.grid import TimeGrid
from odeopt.solver.base import GridSolver

StepKernel = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Stepper(ABC):
    """Makes the steps of one forward sweep; indices count its own steps."""

    length: int | None
    """The number of steps; None until an adaptive solve has finished."""

    saves: bool = True
    """Whether the sweep can be interrupted at any step and go on from there."""

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
    """Steps of known lengths, which a backward sweep can take again."""

    refinement: Refinement | None = None
    """What the solver has put between the times of the grid; None if nothing."""

    _waits: Waits
    _made: Tensor
    """Whether each step is made, shape [steps] or [tasks, steps]."""

    def waits(self, start: int, stop: int) -> Waiting | None:
        """The tasks that wait between two states; None if none does."""
        return self._waits.between(start, stop)

    @abstractmethod
    def interval(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The start and the length of the interval between two states, in the state's dtype."""

    def left_out(self, adjoint: LocalAdjoint) -> Tensor:
        """Whether an adjoint leaves each step out, shape [steps] or [tasks, steps]."""
        return left_out(self._made, adjoint.first_step)

    def method_at(self, k: int) -> int | None:
        """What makes step k, where the solver has a choice; see `Solver.made_with`."""
        del k
        return None

    @override
    def settled(self) -> SettledStepper:
        return self

    @override
    def grid_index(self, k: int) -> int | None:
        return k


class FixedStepper(SettledStepper):
    """Steps of a known grid."""

    def __init__(self, kernels: Kernels, grid: TimeGrid, dtype: torch.dtype, stats: Stats) -> None:
        self.length = grid.steps
        self._stats, self._kernels = stats, kernels
        self._known: dict[int | None, tuple[StepKernel, int]] = {}
        self._times = grid.times
        ruled = kernels.solver.takes_rules
        starts = _step_indices(grid) if ruled else grid.times
        self._starts = _apart(starts, dtype)
        self._lengths = _apart(grid.dt, dtype)
        self._waits, self._made = Waits.of(grid, _moves_at_zero(kernels)), made(grid)
        self._dtype = dtype

    @override
    def advance(self, k: int, y: Tensor) -> Tensor:
        step, stages = self._step(self.method_at(k))
        self._stats.gradient_evaluations += stages
        dt = self._lengths[k]
        y1, waiting = step(k, self._starts[k], dt, y), self.waits(k, k + 1)
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

    def _step(self, method: int | None) -> tuple[StepKernel, int]:
        """The kernel for steps of a method, and what a step costs."""
        if method not in self._known:
            kernels = self._kernels.at(method)
            self._known[method] = kernels.step(), kernels.step_solver.stages
        return self._known[method]


class GridStepper(SettledStepper):
    """States at grid times, computed in one go by a library when the first is asked for."""

    saves = False

    def __init__(self, kernels: Kernels, grid: TimeGrid, y0: Tensor, stats: Stats) -> None:
        self.length = grid.steps
        self._waits, self._made = Waits.of(grid, moves_at_zero=False), made(grid)
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
        solver, dtype = self._kernels.solver, self._y0.dtype
        assert isinstance(solver, GridSolver), "chosen by type"
        times = _common_times(self._grid, type(solver).__name__).to(dtype)
        moments, places = torch.unique_consecutive(times, return_inverse=True)
        velocity = _shared_time(self._kernels.velocity(), self._kernels.tasks)
        self._states, evaluations = solver.solve(velocity, moments, self._y0)
        self._places = places.tolist()
        self._stats.gradient_evaluations += evaluations
        return self._states


def _moves_at_zero(kernels: Kernels) -> bool:
    return kernels.step_solver.moves_at_zero


def _apart(times: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A tensor for each step, contiguous, so that no kernel has to copy it."""
    if times.stride(-1) == 0 and times.shape[-1]:  # one number for all steps, as in `from_lr`
        return (times[..., 0].to(dtype).contiguous(),) * times.shape[-1]
    return times.to(dtype).movedim(-1, 0).contiguous().unbind(0)


def _step_indices(grid: TimeGrid) -> Tensor:
    """0, 1, ..., N in place of times, of the shape of the times."""
    indices = torch.arange(grid.steps + 1, device=grid.times.device, dtype=torch.float64)
    return indices.expand_as(grid.times)


def _shared_time(
    velocity: Callable[[Tensor, Tensor], Tensor], tasks: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    if tasks is None:
        return velocity
    return lambda t, y: velocity(t.expand(tasks), y)


def _common_times(grid: TimeGrid, solver: str) -> Tensor:
    if grid.tasks is None:
        return grid.times
    if not bool((grid.times == grid.times[0]).all()):
        raise CompatibilityError(
            f"{solver} stacks the tasks into one state, so that they share the grid, but the"
            " horizons differ. Use Adaptive(rtol, atol), which gives each task its own steps."
        )
    return grid.times[0]
