"""The steps of an update rule, which brings its own."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from odeopt.errors import CompatibilityError
from odeopt.solver.base import FlatRule, StepGradient, Stepping, StepSolver
from odeopt.tools.types import Velocity


class RuleSteps(StepSolver):
    """One update per interval; its time is the index of the step, its length the learning rate."""

    order = 1
    stages = 1
    stability_limit = math.inf
    moves_at_zero = True
    takes_rules = True

    def __init__(self, pull_gradients: int = 0) -> None:
        self.pull_gradients = pull_gradients

    @override
    def step(self, velocity: Velocity, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        raise CompatibilityError("an update rule has no velocity: it brings its own steps.")

    @override
    def advance(self, stepping: Stepping, t: Tensor, dt: Tensor, y: Tensor) -> Tensor:
        rule = stepping.dynamics
        assert isinstance(rule, FlatRule), "chosen together with its rule"
        return rule.update(t, dt, y, stepping.theta, stepping.data)

    @override
    def pull(
        self, stepping: Stepping, t: Tensor, dt: Tensor, y0: Tensor, lam: Tensor
    ) -> StepGradient:
        rule = stepping.dynamics
        assert isinstance(rule, FlatRule), "chosen together with its rule"
        differentiate, theta, data = stepping.differentiate, stepping.theta, stepping.data
        return rule.pull(differentiate, t, dt, y0, lam, theta, data)
