"""What the tests of the stabilised solver share."""

from __future__ import annotations

import math

import torch

from odeopt import GradientFlow, ODEOptimizer, StabilizedRK
from odeopt.engine.adaptive import AdaptiveStepper
from odeopt.testing.problems import Quadratic


def stiff(condition, d=20, seed=0):
    """A quadratic with eigenvalues from 1 to `condition`, a start and a direction."""
    problem = Quadratic.from_spectrum(torch.logspace(0, math.log10(condition), d).tolist(), seed)
    random = torch.Generator().manual_seed(seed)
    return problem, torch.randn(d, generator=random), torch.randn(d, generator=random)


def along(params, direction):
    return params @ direction


def gradient(problem, grid, start, direction, solver, **choices):
    """The result for a linear outer loss, whose gradient in closed form is `flow_adjoint`."""
    device = start.device
    opt = ODEOptimizer(GradientFlow(problem.loss), solver, **choices)
    return opt.value_and_grad(along)(start, problem.center.to(device), grid, direction.to(device))


def watch_steps(monkeypatch):
    """A list that gets (t, dt, stages) of each accepted step."""
    steps = []
    accept = AdaptiveStepper._accept

    def accepted(self, *args):
        after = accept(self, *args)
        steps.append((*self._steps[-1], self._methods[-1]))
        return after

    monkeypatch.setattr(AdaptiveStepper, "_accept", accepted)
    return steps


def retrace(steps, velocity, y, stretch=1.0):
    """The recorded steps again, in a way that autograd can follow; tasks in a leading dimension."""
    for t, dt, stages in steps:
        begin, length = t.to(y.dtype) * stretch, dt.to(y.dtype) * stretch
        y = StabilizedRK(stages=stages).step(velocity, begin, length, y)
    return y
