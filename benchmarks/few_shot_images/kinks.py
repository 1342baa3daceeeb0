"""What a kinked activation does to the gradient of the flow: measured, against smooth ones."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks import methods
from benchmarks.few_shot_images.data import Tasks
from benchmarks.few_shot_images.nets import problem
from benchmarks.few_shot_images.sizes import Kinks, Setting
from benchmarks.harness.registry import Settings
from benchmarks.harness.runner import Cell
from benchmarks.problems.models import Parameters
from odeopt.solver import Solver
from odeopt.tools.tree import ravel

WIDTHS = (1e-3, 1e-5, 1e-7)
"""Of the central differences, relative to the norm of the initialisation."""


def cells(settings: Settings, setting: Setting, sizes: Kinks) -> list[Cell]:
    """One cell per activation."""
    return [
        Cell(key(name), partial(_compute, settings, setting, sizes, name))
        for name in sizes.activations
    ]


def key(activation: str) -> str:
    """The key of a cell."""
    return f"kinks {activation}"


def _compute(settings: Settings, setting: Setting, sizes: Kinks, activation: str) -> dict[str, Any]:
    """Distances between gradients of the mean validation loss, relative, in float64."""
    given = _Given(settings, replace(setting, activation=activation), sizes.tasks)
    with warnings.catch_warnings():  # of kinks, which are what is measured
        warnings.simplefilter("ignore", odeopt.OdeoptWarning)
        return _measure(given, setting.protocol.steps, sizes.steps)


def _measure(given: _Given, descent_steps: int, steps: tuple[int, ...]) -> dict[str, Any]:
    """See `_compute`."""
    flows = [given.gradient(odeopt.RK4(), n) for n in steps]
    best = flows[-1]
    return {
        "horizon": given.horizon,
        "descent_steps": descent_steps,
        "descent": _apart(given.gradient(odeopt.Euler(), descent_steps), best),
        "coarser": [_apart(flow, best) for flow in flows[:-1]],
        "a_maml": [_apart(given.a_maml(states), best) for states in (descent_steps, steps[-1])],
        "differences": [given.mismatch(best, width, steps[-1]) for width in WIDTHS],
    }


class _Given:
    """Tasks, a net and an initialisation."""

    def __init__(self, settings: Settings, setting: Setting, tasks: int) -> None:
        protocol = setting.protocol
        episodes = Tasks(setting, settings.data).test(tasks)
        self._batch = episodes.finish(episodes.draw(0), settings.device, torch.float64)
        self._problem, self.horizon = problem(setting), protocol.lr * protocol.steps
        start = {k: v.to(settings.device) for k, v in self._problem.model.init(0).items()}
        self._start, self._layout = ravel(start, "params")[:2]
        self._params = start

    def gradient(self, solver: Solver, steps: int) -> Tensor:
        """By the exact adjoint of a solver."""
        return self._flat(self._loop(solver, steps))

    def a_maml(self, states: int) -> Tensor:
        """By A-MAML on so many states, with a tight forward solve; NaN where it is refused."""
        inner = methods.Inner(self.horizon / states, states, states)
        solver = odeopt.DormandPrince(rtol=1e-5, atol=1e-7)
        method = methods.build("a-maml", self._problem, inner, solver=solver)
        try:
            return self._flat(method)
        except odeopt.StabilityError:
            return torch.full_like(self._start, torch.nan)

    def mismatch(self, gradient: Tensor, width: float, steps: int) -> float:
        """How far the slope along the gradient is from a central difference, relative to that."""
        loop = self._loop(odeopt.RK4(), steps)
        direction = gradient / gradient.norm()
        reach = width * self._start.norm()
        ahead, behind = (
            loop.evaluate(self._unflat(self._start + sign * reach * direction), self._batch).mean()
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * reach)
        return (abs(gradient.norm() - slope) / abs(slope)).item()

    def _loop(self, solver: Solver, steps: int) -> odeopt.InnerLoop:
        loss = self._problem.loss
        opt = odeopt.ODEOptimizer(odeopt.GradientFlow(loss), solver)
        return odeopt.InnerLoop(opt, loss, odeopt.TimeGrid.uniform(self.horizon, steps))

    def _flat(self, method: odeopt.Method) -> Tensor:
        return ravel(method(self._params, self._batch).grads.params, "gradient")[0]

    def _unflat(self, vector: Tensor) -> Parameters:
        return self._layout.unflatten(vector)


def _apart(found: Tensor, best: Tensor) -> float:
    return ((found - best).norm() / best.norm()).item()
