"""Time grids: where the steps of an inner optimisation begin and end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.tools.arguments import check_integer
from odeopt.tools.shown import Shown, counted, number, shown

Number = float | int | Tensor

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, init=False, eq=False)
class TimeGrid(Shown):
    r"""Times $t_0 \le t_1 \le \dots \le t_N$ and step sizes $dt_k = t_{k+1} - t_k$.

    For gradient flow and Euler, $dt_k$ is the learning rate of step k. A flow stands still over an
    interval of zero length. An update rule makes its step with a rate of zero, which may move its
    momenta; `stopping` says where it makes no more steps. Gradients flow from a solve to the
    tensors that the grid was made from, which are copied. Two grids are equal if their numbers are.

    Attributes:
        times: shape [N + 1], or [tasks, N + 1] when each task has its own horizon; float64.
        dt: shape [N] or [tasks, N]; float64. Kept beside `times`, since
            differences of cumulative sums would lose the last digits of the learning rate.
        observe: indices of the states that are handed to the outer loss as well.
        stops: how many steps are made, shape [] or [tasks]; None where all are. See `stopping`.
    """

    times: Tensor
    dt: Tensor
    observe: tuple[int, ...]
    stops: Tensor | None

    def __init__(
        self, times: Tensor, observe: Sequence[int] = (), *, dt: Tensor | None = None,
        stops: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Make a grid from its times (shape [N + 1] or [tasks, N + 1]).

        Args:
            times: non-decreasing finite times.
            observe: indices 0..N of states for the outer loss.
            dt: the step sizes, where they are known more exactly than `times.diff()`.
            stops: how many steps are made; the length of later ones must be zero.

        Raises:
            InputError: if a time is not finite, a step is negative or a shape is wrong.
        """
        times = _as_float64(times, "times")
        if times.ndim not in (1, 2) or times.shape[-1] == 0:
            raise InputError(
                f"times has shape {tuple(times.shape)}; expected [N + 1] or [tasks, N + 1]."
            )
        steps = times.diff(dim=-1) if dt is None else _as_float64(dt, "dt")
        _check_steps(times, steps)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "dt", steps)
        object.__setattr__(self, "observe", _check_observe(observe, steps.shape[-1]))
        object.__setattr__(self, "stops", None if stops is None else _check_stops(stops, steps))

    @override
    def _shown(self) -> Iterator[str]:
        ends = [number(t) for t in (self.times[..., 0].min(), self.times[..., -1].max())]
        yield ends[0] if ends[0].startswith("tensor") else " to ".join(ends)
        yield counted(self.steps, "step")
        if self.tasks is not None:
            yield counted(self.tasks, "task")
        if self.observe:
            yield f"observe={shown(list(self.observe))}"
        if self.stops is not None:
            yield "stopping"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimeGrid):
            return NotImplemented
        mine, theirs = (self.times, self.dt, self.stops), (other.times, other.dt, other.stops)
        return self.observe == other.observe and all(map(_same, mine, theirs))

    def __hash__(self) -> int:
        return hash((self.times.shape, self.observe))

    @classmethod
    def from_lr(cls, lr: Number, steps: int | None = None, observe: Sequence[int] = ()) -> TimeGrid:
        """Steps of the given learning rates: N steps of size lr, starting at time 0.

        Args:
            lr: a float or 0-dim tensor (with `steps`), one value per step of shape [N], or one
                row per task of shape [tasks, N].
            steps: N; may be left out when lr has one value per step.
            observe: indices 0..N of states for the outer loss.
        """
        dt = _as_float64(lr, "lr")
        if dt.ndim == 0:
            dt = dt.expand(check_integer(steps, "steps", at_least=0))
        elif steps is not None and dt.shape[-1] != steps:
            raise InputError(
                f"lr has shape {tuple(dt.shape)} and steps is {steps}; expected {steps} values in"
                " its last dimension, or leave steps out."
            )
        zero = dt.new_zeros((*dt.shape[:-1], 1))
        return cls(torch.cat([zero, dt.cumsum(-1)], dim=-1), observe, dt=dt)

    @classmethod
    def uniform(cls, t1: Number, steps: int, observe: Sequence[int] = ()) -> TimeGrid:
        """N equal steps from 0 to t1; t1 a float, a 0-dim tensor, or [tasks] horizons."""
        count = check_integer(steps, "steps", at_least=0)
        horizon = _as_float64(t1, "t1")
        if horizon.ndim > 1:
            raise InputError(f"t1 has shape {tuple(horizon.shape)}; expected [] or [tasks].")
        where = _first(~(torch.isfinite(horizon) & (horizon >= 0)))
        if where is not None:
            task = f" of task {where[0]}" if where else ""
            value = horizon.detach()[where].item()
            raise InputError(f"t1{task} is {value:g}; expected finite horizons of at least 0.")
        fractions = torch.arange(count + 1, dtype=torch.float64, device=horizon.device)
        times = horizon[..., None] * (fractions / max(count, 1))
        dt = (horizon / max(count, 1))[..., None].expand((*horizon.shape, count))
        return cls(times, observe, dt=dt)

    @property
    def steps(self) -> int:
        """The number of intervals N."""
        return self.dt.shape[-1]

    @property
    def tasks(self) -> int | None:
        """The number of tasks, or None when one grid serves all."""
        return self.times.shape[0] if self.times.ndim == 2 else None

    def stopping(self, steps: Tensor | int) -> TimeGrid:
        """The same grid on which a solve waits from some step on, each task from its own.

        What waits does not change, whatever is run: neither a flow nor an update rule with its
        momenta. Lengths of steps that are not made become zero.

        Args:
            steps: how many steps are made, an integer or a tensor of integers, shape [] or
                [tasks].

        Raises:
            InputError: if they are no integers from 0 to N.
        """
        if isinstance(steps, int):
            steps = torch.tensor(steps)
        if not isinstance(steps, Tensor) or steps.dtype not in _INTEGERS:  # pyright: ignore
            raise InputError(
                f"steps is {shown(steps)}; expected an integer or a tensor of integers."
            )
        lead = steps.shape if self.tasks is None else (self.tasks,)
        taking_place = torch.arange(self.steps, device=steps.device) < steps[..., None]
        dt = torch.where(taking_place.to(self.dt.device), self.dt, 0.0)
        begin = self.times[..., :1].expand(*lead, 1)
        times = torch.cat([begin, begin + dt.cumsum(-1)], dim=-1)
        return TimeGrid(times, self.observe, dt=dt, stops=steps)

    def rows(self, first: int, stop: int) -> TimeGrid:
        """The grid of the tasks first..stop-1; the grid itself if all tasks share it."""
        return self if self.tasks is None else self._each(lambda own: own[first:stop])

    def for_tasks(self, tasks: int) -> TimeGrid:
        """The grid with one row per task."""
        if self.tasks is not None:
            return self
        return self._each(lambda own: own.expand(tasks, *own.shape))

    def observing(self, observe: Sequence[int]) -> TimeGrid:
        """The same grid with other observed states."""
        return TimeGrid(self.times, observe, dt=self.dt, stops=self.stops)

    def to(self, device: torch.device) -> TimeGrid:
        """The same grid on another device."""
        if self.times.device == device and self.dt.device == device:
            return self
        return self._each(lambda own: own.to(device))

    def detach(self) -> TimeGrid:
        """The same grid without its autograd history."""
        if not (self.times.requires_grad or self.dt.requires_grad):
            return self
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> TimeGrid:
        """The grid of other tensors, each made of one of these."""
        stops = None if self.stops is None else change(self.stops)
        return TimeGrid(change(self.times), self.observe, dt=change(self.dt), stops=stops)


def check_grid(grid: Any, more: str = "") -> TimeGrid:
    """The grid.

    Args:
        grid: what was given for one.
        more: what else would do.

    Raises:
        InputError: if it is none; the message makes one of a learning rate or a number of steps.
    """
    if isinstance(grid, TimeGrid):
        return grid
    make = "TimeGrid.from_lr(lr=0.01, steps=500)"
    if isinstance(grid, Sequence | np.ndarray) or (isinstance(grid, Tensor) and grid.ndim):
        make = "TimeGrid.from_lr(rates), with one learning rate for each step, or TimeGrid(times)"
    elif isinstance(grid, int):
        make = f"TimeGrid.from_lr(0.01, steps={grid})"
    elif isinstance(grid, float | Tensor):
        make = f"TimeGrid.from_lr({number(grid)}, steps=500)"
    raise InputError(f"grid is {shown(grid)}; expected a TimeGrid{more}, e.g. {make}.")


def _as_float64(value: Number, what: str) -> Tensor:
    if isinstance(value, Tensor) and (value.is_complex() or value.dtype is torch.bool):
        raise InputError(f"{what} has dtype {value.dtype}; expected real numbers.")
    if isinstance(value, Tensor):
        return _copy(value) if value.dtype is torch.float64 else value.to(torch.float64)
    try:
        return torch.tensor(value, dtype=torch.float64)  # a copy of an array, too
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} is {shown(value)}; expected a number or a tensor.") from error


def _copy(value: Tensor) -> Tensor:
    """A copy; one number for all steps stays one number."""
    if value.ndim and value.stride(-1) == 0 and value.shape[-1]:
        return value[..., :1].clone().expand(value.shape)
    return value.clone()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and bool((one == other.to(one.device)).all())


def _check_steps(times: Tensor, dt: Tensor) -> None:
    if dt.shape != (*times.shape[:-1], times.shape[-1] - 1):
        raise InputError(
            f"dt has shape {tuple(dt.shape)} and times {tuple(times.shape)}; dt has one value less."
        )
    where = _first(~(torch.isfinite(dt) & (dt >= 0)))
    if where is not None:
        raise InputError(
            f"step {where[-1]} of the grid has the length {dt.detach()[where].item():g};"
            " expected finite steps of at least 0 (times must not decrease)."
        )
    where = _first((times.diff(dim=-1) - dt).abs() > 1e-9 + 1e-6 * dt.abs())
    if where is not None and torch.isfinite(times).all():
        raise InputError(
            f"dt and times contradict each other at step {where[-1]}: dt is"
            f" {dt.detach()[where].item():g}, but the times differ by"
            f" {times.detach().diff(dim=-1)[where].item():g}. Give times alone, or lr alone"
            " to from_lr."
        )
    if _first(~torch.isfinite(times)) is not None:
        raise InputError("times holds a value that is not finite; expected finite times.")


def _check_observe(observe: Any, steps: int) -> tuple[int, ...]:
    if not isinstance(observe, Iterable):
        raise InputError(f"observe is {shown(observe)}; expected a list of state indices.")
    observe = list(observe)
    for index in observe:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= steps:
            raise InputError(
                f"observe holds {shown(index)}; expected state indices from 0 to {steps}."
            )
    if len(set(observe)) != len(observe):
        raise InputError(f"observe is {shown(observe)}; expected each index once.")
    return tuple(observe)


def _check_stops(stops: Any, dt: Tensor) -> Tensor:
    if not isinstance(stops, Tensor) or stops.dtype not in _INTEGERS:
        raise InputError(
            f"the steps that are made are {shown(stops)}; expected a tensor of integers."
        )
    count = dt.shape[-1]
    if stops.shape != dt.shape[:-1]:
        raise InputError(
            f"the steps that are made have shape {tuple(stops.shape)}; expected"
            f" {tuple(dt.shape[:-1])}, one number for each task."
        )
    if _first((stops < 0) | (stops > count)) is not None:
        raise InputError(
            f"the steps that are made are {shown(stops)}; expected integers from 0 to {count}."
        )
    later = torch.arange(count, device=dt.device) >= stops.to(dt.device)[..., None]
    where = _first(later & (dt != 0))
    if where is not None:
        raise InputError(
            f"step {where[-1]} of the grid is not made, but has the length"
            f" {dt.detach()[where].item():g}: use grid.stopping(steps), which makes it zero."
        )
    return stops.to(dt.device, copy=True)


def _first(mask: Tensor) -> tuple[int, ...] | None:
    """Where a mask is first true; None if nowhere, or if a function transform hides its values."""
    try:
        return tuple(mask.nonzero()[0].tolist()) if bool(mask.any()) else None
    except RuntimeError:
        return None
