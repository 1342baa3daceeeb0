"""Random problems: a loss, a start, two batches, a horizon and the true gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import odeopt
from benchmarks.problems import classification, functions, models
from benchmarks.problems.functions import uniform
from benchmarks.tolerance import families
from benchmarks.tolerance.sizes import LONG, OTHERS, Sizes
from odeopt.testing.problems import Quadratic, relative_error
from odeopt.tools import tree

WAYS, SHOTS = 5, 10
CLASSIFIERS = {
    "digits mlp": models.mlp([64, 32, WAYS]),
    "digits conv": models.conv_net(WAYS),
}
POWER_STEPS = 30

ACCURATE = 1e-6
"""The steps of the reference are doubled until its own error is below this."""

MOST_STEPS = 20_000
"""Solves with more steps are not tried."""

FIXED = {"Euler": odeopt.Euler(), "ModifiedEuler": odeopt.ModifiedEuler(), "RK4": odeopt.RK4()}
STRETCHED = {"Chebyshev2": odeopt.Chebyshev2(), "Chebyshev3": odeopt.Chebyshev3()}


@dataclass(frozen=True)
class Problem:
    r"""A random problem.

    Attributes:
        family: Its kind.
        loss: Inner and outer loss.
        params: The start.
        train: The batch of the flow.
        validation: The batch of the outer loss.
        horizon: T.
        stiffness: $\rho T$ at the start.
        compile: How kernels are run.
        quadratic: Where the flow is known in closed form.
    """

    family: str
    loss: Callable[[Any, Any], Tensor]
    params: Any
    train: Any
    validation: Any
    horizon: float
    stiffness: float
    compile: str | None = None
    quadratic: Quadratic | None = None
    made: dict[str, odeopt.ODEOptimizer] = field(default_factory=dict[str, odeopt.ODEOptimizer])

    def optimizer(self, **settings: Any) -> odeopt.ODEOptimizer:
        """An optimiser for its loss."""
        flow = odeopt.GradientFlow(self.loss)
        return odeopt.ODEOptimizer(flow, compile=self.compile, **settings)

    def fixed(self, name: str) -> odeopt.ODEOptimizer:
        """The one with fixed steps of a kind, whose kernels are recorded once."""
        if name not in self.made:
            self.made[name] = self.optimizer(solver={**FIXED, **STRETCHED}[name])
        return self.made[name]

    def gradient(self, opt: odeopt.ODEOptimizer, steps: int, estimate: bool = False) -> Any:
        """The result of an optimiser on a uniform grid."""
        found = opt.value_and_grad(self.loss, estimate_error=estimate)
        grid = odeopt.TimeGrid.uniform(t1=self.horizon, steps=steps)
        return found(self.params, self.train, grid, self.validation)

    def truth(self) -> tuple[Any, float]:
        """The gradient of the flow and its own relative error."""
        known = self.quadratic
        if known is not None:
            offset = known.flow(self.params, self.horizon) - self.validation
            return known.flow_adjoint(known.matrix @ offset, self.horizon), 0.0
        steps = max(128, 2 * math.ceil(4 * self.stiffness))
        half = self.gradient(self.fixed("RK4"), steps // 2).grads.params
        while True:
            found = self.gradient(self.fixed("RK4"), steps).grads.params
            own = relative_error(half, found) / 15
            if own < ACCURATE or steps > MOST_STEPS:
                return found, own
            half, steps = found, 2 * steps


def draw(family: str, seed: int, sizes: Sizes) -> Problem:
    """The problem of a seed."""
    generator = torch.Generator().manual_seed(seed)
    low, high = sizes.stiffness
    stiffness = math.exp(uniform(math.log(low), math.log(high), generator))
    if family == "quadratic":
        return _quadratic(seed, stiffness, generator)
    if family in OTHERS:
        loss, params, train, validation = families.draw(family, generator)
        horizon = stiffness / radius(loss, params, train)
        return Problem(family, loss, params, train, validation, horizon, stiffness)
    if family in CLASSIFIERS:
        task = classification.task(seed, ways=WAYS, shots=SHOTS)
        task = classification.flatten(task) if family == "digits mlp" else task
        model, loss = CLASSIFIERS[family], models.cross_entropy
    else:
        name, _, protocol = family.partition(" ")
        family_of = functions.FAMILIES[name]
        task, model = family_of.task(seed, protocol or "code", sizes.shots), functions.MODEL
        loss = models.half_mean_square

    def whole(params: Any, batch: Any) -> Tensor:
        return loss(model.apply(params, batch.x), batch.y)

    params = model.init(seed)
    horizon = stiffness / radius(whole, params, task.train)
    compile = sizes.compile if stiffness > LONG else None
    return Problem(family, whole, params, task.train, task.validation, horizon, stiffness, compile)


def radius(loss: Callable[[Any, Any], Tensor], params: Any, batch: Any) -> float:
    """The largest eigenvalue of the Hessian, in size, by power iteration."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.func.grad(loss)
    vector = tree.map_tensors(
        lambda leaf: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype), params
    )
    for _ in range(POWER_STEPS):
        size = _norm(vector)
        unit = tree.map_tensors(lambda leaf, size=size: leaf / size, vector)
        vector = torch.func.jvp(lambda p: slope(p, batch), (params,), (unit,))[1]
    return _norm(vector)


def _norm(vector: Any) -> float:
    return math.hypot(*(leaf.norm().item() for leaf in tree.leaves(vector)))


def _quadratic(seed: int, stiffness: float, generator: torch.Generator) -> Problem:
    size = int(uniform(3, 30, generator))
    spectrum = [1.0] + [10 ** uniform(-3, 0, generator) for _ in range(size - 1)]
    known = Quadratic.from_spectrum(spectrum, seed)
    start, other = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return Problem(
        "quadratic", known.loss, start, known.center, other, stiffness, stiffness, quadratic=known
    )
