"""What each method's gradient is compared with, in float64.

A target is the meta-gradient, w.r.t. the initialisation, that a method would return if it made no
approximation to what it stands for. Truncated MAML, FOMAML and Reptile stand for the exact
gradient of gradient descent with their number of steps; MAML-1 for that of its one step; A-MAML
for the flow's; A-MAML as released for that of the flow of its regularised problem; iMAML for that
of the minimiser of its regularised problem; the others for their own gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian

import odeopt
from benchmarks import methods
from benchmarks.comparison import of_order_four
from benchmarks.harness.registry import Preset
from benchmarks.problems import classification, functions, models
from benchmarks.problems.models import Parameters, Problem
from benchmarks.problems.tasks import Task, each, move
from odeopt.tools.tree import ravel

LR = 0.01
"""The learning rate of the gradient descent that every method stands for."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run."""

    problems: tuple[str, ...]  # names in `TITLES`
    horizons: tuple[float, ...]  # T; gradient descent takes T / LR steps
    tasks: int  # of the meta-gradient
    shots: int  # training points of regression, as many for validation; of digits 10
    rate: int  # RK4 steps of the reference per unit of time
    repeats: int  # timed runs of a method

    def reference_steps(self, t1: float) -> int:
        """RK4 steps up to t1, an even number."""
        return max(16, 2 * int(self.rate * t1 / 2))


SIZES = {
    Preset.SMOKE: Sizes(("cosmixture",), (0.05,), 2, 4, 64, 1),
    Preset.QUICK: Sizes(("cosmixture", "digits"), (0.5, 2.0), 2, 25, 64, 1),
    Preset.PAPER: Sizes(("cosmixture", "alpine", "digits"), (0.5, 2.0, 5.0, 20.0), 5, 50, 64, 3),
}


WAYS, SHOTS = 5, 10

TITLES = {
    "cosmixture": "CosMixture", "alpine": "Alpine", "digits": f"digits, {WAYS}-way {SHOTS}-shot",
}  # fmt: skip
"""The problems."""


class Inputs(NamedTuple):
    """Tasks and an initialisation, in one dtype on one device."""

    problem: Problem
    params: Parameters
    tasks: Task


def inputs(problem: str, sizes: Sizes, device: torch.device) -> Inputs:
    """A problem's, in float64."""
    if problem == "digits":
        own = Problem(models.mlp([64, 32, WAYS]), models.cross_entropy)
        tasks = classification.flatten(classification.tasks(sizes.tasks, ways=WAYS, shots=SHOTS))
    else:
        own = Problem(functions.MODEL, models.half_mean_square)
        tasks = functions.FAMILIES[problem].tasks(range(sizes.tasks), "code", sizes.shots)
    return move(Inputs(own, own.model.init(0), tasks), device, torch.float64)


STRENGTH = 1.0
"""The proximal weight of iMAML and of A-MAML as released, their default."""

RELAXING_STEPS = 400
RELAXING_LR = 0.05
NEWTON_STEPS = 4
TRACED = 400
"""RK4 steps from which tracing the kernels of a reference pays."""

TIGHT = odeopt.Adaptive(rtol=1e-9, atol=1e-11)


class Target(NamedTuple):
    """A gradient, flat, and an estimate of its own error.

    The relative error for flows, the largest slope left for minimisers, 0 for what has only
    rounding errors or the tolerance of its solver.
    """

    gradient: Tensor
    error: float = 0.0


class Targets:
    """The targets of one problem and horizon, each computed once per process."""

    def __init__(self, make: Callable[[], Inputs], t1: float, sizes: Sizes) -> None:
        self.inputs, self._t1, self._sizes = cache(make), t1, sizes
        self._of_kind = cache(self._compute)

    def flow(self) -> Target:
        """The gradient of the flow."""
        return self._of_kind("flow")

    def own(self, method: str) -> Target:
        """The target of a method, by its name in `benchmarks.methods`."""
        return self._of_kind(OWN[method])

    def _compute(self, kind: str) -> Target:
        sources = self.inputs()
        if kind in FLOWS:
            steps = self._sizes.reference_steps(self._t1)
            return Target(*of_order_four(partial(FLOWS[kind], sources, self._t1), steps))
        if kind == "minimiser":
            return _at_minimiser(sources)
        inner = methods.Inner(LR, round(self._t1 / LR), 1)
        tight = {"solver": TIGHT} if kind == "comln" else {}
        method = methods.build(kind, sources.problem, inner, **tight)
        return Target(_flat_gradient(method, sources))


OWN = {
    "maml": "maml", "truncated-maml": "maml", "fomaml": "maml", "reptile": "maml",
    "maml-1": "maml-1", "a-maml": "flow", "a-maml-released": "regularised flow",
    "imaml-gd": "minimiser", "imaml-hf": "minimiser", "comln": "comln", "anil": "anil",
    "meta-sgd": "meta-sgd",
}  # fmt: skip
"""The kind of target of each method."""

WORDS = {
    "maml": "exact gradient of gradient descent", "maml-1": "exact gradient of one step",
    "flow": "gradient of the flow",
    "regularised flow": "gradient of its regularised flow",
    "minimiser": "implicit gradient at the minimiser", "comln": "its own, float64, tolerance 1e-9",
    "anil": "its own, float64", "meta-sgd": "its own, float64",
}  # fmt: skip
"""The kinds of targets in words."""


def flat(params: object) -> Tensor:
    """A gradient as one vector."""
    return ravel(params, "gradient")[0]


def _flat_gradient(method: odeopt.Method, sources: Inputs) -> Tensor:
    return flat(methods.gradient_of(method, sources.params, sources.tasks)().grads.params)


def _rk4(field: odeopt.Field, steps: int) -> odeopt.ODEOptimizer:
    compile = "trace" if steps >= TRACED else None
    return odeopt.ODEOptimizer(field, odeopt.RK4(), compile=compile)


def _flow(sources: Inputs, t1: float, steps: int) -> Tensor:
    loss = sources.problem.loss
    opt = _rk4(odeopt.GradientFlow(loss), steps)
    return _flat_gradient(odeopt.InnerLoop(opt, loss, odeopt.TimeGrid.uniform(t1, steps)), sources)


def _regularised_flow(sources: Inputs, t1: float, steps: int) -> Tensor:
    """The same with the proximal term in the inner and in the outer loss, differentiated twice.

    The centre of the term is the initialisation: in the inner loss the field passes the gradient
    on, in the outer one it is an argument of its own.
    """
    loss = sources.problem.loss

    def inner(params: dict[str, Tensor], batch: object, center: object) -> Tensor:
        del center
        return loss(params, batch)  # type: ignore[arg-type]

    def outer(params: dict[str, Tensor], batch: object, center: dict[str, Tensor]) -> Tensor:
        distance = torch.stack([(params[k] - center[k]).square().sum() for k in center]).sum()
        return loss(params, batch) + 0.5 * STRENGTH * distance  # type: ignore[arg-type]

    field = odeopt.RegularizedFlow(inner, STRENGTH)
    opt = _rk4(field, steps)
    method = odeopt.InnerLoop(opt, outer, odeopt.TimeGrid.uniform(t1, steps))
    batch = odeopt.TaskBatch(*sources.tasks)
    grads = method(sources.params, batch, sources.params).grads
    return flat(grads.params) + flat(grads.hparams)


FLOWS = {"flow": _flow, "regularised flow": _regularised_flow}


def _at_minimiser(sources: Inputs) -> Target:
    """The mean over tasks of (I + H / strength)^-1 grad L_val at the minimiser, H dense."""
    loss, layout = sources.problem.loss, ravel(sources.params, "params")
    start, unflatten = layout[0], layout[1].unflatten
    total, left = torch.zeros_like(start), 0.0
    tasks = each(sources.tasks)
    for train, validation in tasks:

        def inner(u: Tensor, train: object = train) -> Tensor:
            return loss(unflatten(u), train) + 0.5 * STRENGTH * (u - start).square().sum()

        end = _minimiser(inner, start)
        slope = grad(lambda u, data=validation: loss(unflatten(u), data))(end)
        total += STRENGTH * torch.linalg.solve(hessian(inner)(end), slope)
        left = max(left, grad(inner)(end).norm().item())
    return Target(total / len(tasks), left)


def _minimiser(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Gradient descent, which stays in the basin that iMAML's own finds, then Newton's method."""
    slope = grad(objective)
    u = start
    for _ in range(RELAXING_STEPS):
        u = u - RELAXING_LR * slope(u)
    for _ in range(NEWTON_STEPS):
        u = u - torch.linalg.solve(hessian(objective)(u), slope(u))
    return u
