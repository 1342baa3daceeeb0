"""The loop over attempted steps written again, task by task in plain numbers.

It is an oracle for which steps a solve takes. What a single step is, the first step size and the
controller come from the solver; the rest is here: landing on the grid, acceptance, tasks that
wait or fail, and, for the stabilised solver, the number of stages and the spectral radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

RAISED = 1.15
"""By how much the stabilised solver raises the radii that it finds."""


@dataclass
class Task:
    """Where a task is, and what its next step will be."""

    t: float
    y: torch.Tensor
    slope: torch.Tensor
    dt: float
    previous: float = 1.0
    failed: bool = False
    radius: float = 0.0
    margin: float = RAISED
    was_rejected: bool = False


class StepsByHand:
    """Takes the steps of an adaptive solve.

    Args:
        solver: the solver.
        velocity: `(task, t, y) -> dy/dt` in floats and tensors of shape [d].
        times: the grid of each task.
        starts: the initial state of each task.
    """

    def __init__(self, solver, velocity, times, starts):
        self.solver, self.velocity, self.times = solver, velocity, times
        self.controller = solver.tolerances.controller
        self.evaluations, self.attempts = 0, 0
        self.starts, self.happened = [], set()
        slopes = [
            velocity(k, own[0], y) for k, (own, y) in enumerate(zip(times, starts, strict=True))
        ]
        first = [
            solver.initial_dt(self._of(k), number(own[0]), y, slope).item()
            for k, (own, y, slope) in enumerate(zip(times, starts, slopes, strict=True))
        ]
        self.evaluations += 1 if solver.tolerances.first_step is not None else 2
        self.tasks = [
            Task(own[0], y, slope, dt)
            for own, y, slope, dt in zip(times, starts, slopes, self._pool(first), strict=True)
        ]
        self.prepare()
        for parent in range(len(times[0]) - 1):
            self._interval(parent)

    def prepare(self):
        """What is done before the first step."""

    def try_steps(self, dts):
        """The attempts of all tasks, and their pooled errors."""
        self.attempts += 1
        self.evaluations += self.solver.attempt_gradients
        return self._attempt(self.solver, dts)

    def adapted(self, k, dt, accepted):
        """What else is done with task k once its next step size is known."""

    def shorten(self):
        """What is done once all next step sizes are known."""

    def _interval(self, parent):
        targets = [own[parent + 1] for own in self.times]
        while True:
            dts, lands = [], []
            for task, target in zip(self.tasks, targets, strict=True):
                lands.append(task.t + task.dt * (1 + 1e-9) >= target)
                dts.append(target - task.t if lands[-1] else task.dt)
            tried, errors = self.try_steps(dts)
            moved = []
            for k, task in enumerate(self.tasks):
                fine = errors[k] <= 1 and bool(torch.isfinite(tried[k].y).all())
                accepted = fine or task.failed
                moved.append(accepted and dts[k] > 0)
                self._adapt(k, errors[k], accepted, lands[k], dts[k])
            self.shorten()
            self.happened |= {"accepted"} if any(moved) else {"rejected"}
            if any(moved) or not any(dt > 0 for dt in dts):
                self._take(tried, targets, moved, lands, dts)
            if all(task.t >= target for task, target in zip(self.tasks, targets, strict=True)):
                return

    def _take(self, tried, targets, moved, lands, dts):
        self.starts.append([task.t for task in self.tasks])
        for k, task in enumerate(self.tasks):
            if moved[k]:
                task.t = targets[k] if lands[k] else task.t + dts[k]
                task.slope = tried[k].slope
                task.y = torch.full_like(task.y, math.nan) if task.failed else tried[k].y
            elif dts[k] > 0:
                self.happened.add("one waits for another")

    def _adapt(self, k, error, accepted, lands, dt):
        task, order = self.tasks[k], self.solver.error_order
        factor = self.controller.factor(number(error), number(task.previous), order).item()
        proposal = dt * factor
        if accepted and lands:
            proposal = max(proposal, task.dt)
        if dt > 0:
            task.dt = proposal
            if accepted:
                task.previous = max(error, 1e-4)
        self.adapted(k, dt, accepted)
        if not task.dt >= 1e-14 * (1 + abs(task.t)):
            task.failed = True
            self.happened.add("failed")
        if task.failed:
            task.dt = math.inf

    def _attempt(self, solver, dts):
        tried = [
            solver.attempt(self._of(k), number(task.t), number(dt), task.y, task.slope)
            for k, (task, dt) in enumerate(zip(self.tasks, dts, strict=True))
        ]
        errors = [one.error.item() if dt > 0 else 0.0 for one, dt in zip(tried, dts, strict=True)]
        return tried, self._pool(errors)

    def _pool(self, errors):
        if self.controller.per_task or len(errors) == 1:
            return errors
        return [math.sqrt(sum(e * e for e in errors) / len(errors))] * len(errors)

    def _of(self, k):
        return lambda t, y: self.velocity(k, t.item(), y)


class StabilizedByHand(StepsByHand):
    """Takes the steps of `StabilizedRK`, chooses their stages and follows the spectral radius."""

    def prepare(self):
        self.draws = torch.Generator().manual_seed(0)
        self.estimates = 0
        self.vectors = [torch.zeros_like(task.y) for task in self.tasks]
        self._renew([task.slope for task in self.tasks])
        points = [(task.t, task.y, task.slope) for task in self.tasks]
        nothing = [0.0] * len(self.tasks)
        found = self._estimate(points, nothing, [True] * len(self.tasks))
        for task, radius in zip(self.tasks, found, strict=True):
            task.radius = radius
        self.shorten()

    def try_steps(self, dts):
        active = [dt > 0 and not task.failed for task, dt in zip(self.tasks, dts, strict=True)]
        while True:
            stages = self.solver.stages_for(
                max(
                    (dt * task.radius * task.margin if on else 0.0)
                    for task, dt, on in zip(self.tasks, dts, active, strict=True)
                )
            )
            fixed = self.solver.at(stages)
            self.attempts += 1
            self.evaluations += stages
            tried, errors = self._attempt(fixed, dts)
            good = [
                on and error <= 1 and bool(torch.isfinite(one.y).all())
                for on, error, one in zip(active, errors, tried, strict=True)
            ]
            self.ahead = [task.radius for task in self.tasks]
            if any(good):
                points = [
                    (task.t + dt, one.y, one.slope)
                    for task, dt, one in zip(self.tasks, dts, tried, strict=True)
                ]
                self.ahead = self._estimate(points, self.ahead, good)
            unstable = [
                on and dt * ahead * math.sqrt(RAISED) > fixed.stability_limit
                for on, dt, ahead in zip(good, dts, self.ahead, strict=True)
            ]
            if not any(unstable):
                break
            self.happened.add("made again with more stages")
            for k, task in enumerate(self.tasks):
                if unstable[k]:
                    task.radius = self.ahead[k]
            if stages == self.solver.max_stages:
                self.happened.add("no more stages")
                errors = [2.0 if no else error for no, error in zip(unstable, errors, strict=True)]
                break
        rejected = [on and not error <= 1 for on, error in zip(active, errors, strict=True)]
        if any(rejected):
            self._suspect(tried, errors, rejected)
        for task, no in zip(self.tasks, rejected, strict=True):
            task.was_rejected = no
        return tried, errors

    def adapted(self, k, dt, accepted):
        task = self.tasks[k]
        if accepted and dt > 0:
            task.radius = self.ahead[k]
            task.margin = max(0.95 * task.margin, RAISED)

    def shorten(self):
        rates = [task.radius * task.margin for task in self.tasks]
        if not self.controller.per_task:
            rates = [max(rates)] * len(rates)
        longest = self.solver.at(self.solver.max_stages).stability_limit
        for task, rate in zip(self.tasks, rates, strict=True):
            if not task.failed and rate > 0 and longest / rate < task.dt:
                task.dt = longest / rate
                self.happened.add("shortened")

    def _suspect(self, tried, errors, rejected):
        self._renew(
            [
                one.y - task.y if no else torch.zeros_like(task.y)
                for task, one, no in zip(self.tasks, tried, rejected, strict=True)
            ]
        )
        points = [(task.t, task.y, task.slope) for task in self.tasks]
        found = self._estimate(points, [0.0] * len(points), rejected)
        for k, task in enumerate(self.tasks):
            if not rejected[k]:
                continue
            blown = not errors[k] <= 100 or task.was_rejected
            if blown and not found[k] > 1.05 * task.radius:
                task.margin = min(1.25 * task.margin, 4 * RAISED)
                self.happened.add("wider margin")
            if found[k] > task.radius:
                self.happened.add("larger radius")
            task.radius = max(found[k], task.radius)

    def _renew(self, hints):
        draw = unit(torch.randn(len(hints[0]), generator=self.draws, dtype=torch.float64))
        self.vectors = [
            unit(vector + 0.5 * draw + unit(hint))
            for vector, hint in zip(self.vectors, hints, strict=True)
        ]

    def _estimate(self, points, last, wanted):
        self.estimates += 1
        if self.estimates % 10 == 0:
            self._renew([torch.zeros_like(y) for _, y, _ in points])
        radius, settled = list(last), [not want for want in wanted]
        for _ in range(50):
            self.evaluations += 1
            for k, (t, y, slope) in enumerate(points):
                if settled[k]:
                    continue
                length = math.sqrt(torch.finfo(torch.float64).eps) * (y.norm().item() or 1.0)
                change = self.velocity(k, t, y + length * self.vectors[k]) - slope
                found = change.norm().item() / length
                if not (found > 0 and math.isfinite(found)):
                    found = radius[k]
                else:
                    self.vectors[k] = unit(change)
                settled[k] = abs(found - radius[k]) <= 0.05 * found
                radius[k] = found
            if all(settled):
                break
        return radius


def number(value):
    """As a 0-dim tensor of double precision."""
    return torch.tensor(value, dtype=torch.float64)


def unit(vector):
    """Of length one, or zero."""
    size = vector.norm().item()
    return vector / size if size > 0 and math.isfinite(size) else torch.zeros_like(vector)
