"""What each method's gradient is compared with, in float64.

A target is the meta-gradient, w.r.t. the initialisation, that a method would return if it made no
approximation to what it stands for. Truncated MAML, FOMAML and Reptile stand for the exact
gradient of gradient descent with their number of steps; MAML-1 for that of its one step; A-MAML
for the flow's; A-MAML as released for that of the flow of its regularised problem; iMAML for that
of the minimiser of its regularised problem; the others for their own gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, hessian

import odeopt
from benchmarks import methods
from benchmarks.accuracy_vs_checkpoints.methods.problems import Inputs
from benchmarks.accuracy_vs_checkpoints.methods.sizes import LR, Sizes
from odeopt.tools.tree import ravel

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
    """The targets of one problem and horizon, each computed once per process.

    Args:
        make: The inputs, in float64.
        t1: The horizon.
        sizes: The sizes of the run.
    """

    def __init__(self, make: Callable[[], Inputs], t1: float, sizes: Sizes) -> None:
        self._make, self._t1, self._sizes = cache(make), t1, sizes
        self._cached = cache(self._compute)

    def inputs(self) -> Inputs:
        """The inputs in float64."""
        return self._make()

    def flow(self) -> Target:
        """The gradient of the flow."""
        return self._cached("flow")

    def own(self, method: str) -> Target:
        """The target of a method, by its name in `benchmarks.methods`."""
        return self._cached(OWN[method])

    def _compute(self, kind: str) -> Target:
        given = self._make()
        if kind in ("flow", "regularised flow"):
            steps = self._sizes.reference_steps(self._t1)
            gradient = partial(_FLOWS[kind], given, self._t1)
            return _halved(gradient(steps), gradient(steps // 2))
        if kind == "minimiser":
            return _at_minimiser(given)
        if kind == "comln":
            return Target(_comln(given, self._t1))
        inner = methods.Inner(LR, round(self._t1 / LR), 1)
        return Target(_flat_gradient(methods.build(kind, given.problem, inner), given))


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


def _flat_gradient(method: odeopt.Method, given: Inputs) -> Tensor:
    hparams = method.init_hparams(given.params)
    batch = odeopt.TaskBatch(given.tasks.train, given.tasks.validation)
    return flat(method(given.params, batch, hparams).grads.params)


def _halved(fine: Tensor, coarse: Tensor) -> Target:
    """The finer of two gradients of order 4, with the error that the coarser one tells."""
    return Target(fine, ((coarse - fine).norm() / fine.norm()).item() / 15)


def _rk4(field: odeopt.Field, steps: int) -> odeopt.ODEOptimizer:
    compile = "trace" if steps >= TRACED else None
    return odeopt.ODEOptimizer(field, odeopt.RK4(), compile=compile)


def _flow(given: Inputs, t1: float, steps: int) -> Tensor:
    loss = given.problem.loss
    opt = _rk4(odeopt.GradientFlow(loss), steps)
    return _flat_gradient(odeopt.InnerLoop(opt, loss, odeopt.TimeGrid.uniform(t1, steps)), given)


def _regularised_flow(given: Inputs, t1: float, steps: int) -> Tensor:
    """The same with the proximal term in the inner and in the outer loss, differentiated twice.

    The centre of the term is the initialisation: in the inner loss the field passes the gradient
    on, in the outer one it is an argument of its own.
    """
    loss = given.problem.loss

    def inner(params: dict[str, Tensor], batch: object, center: object) -> Tensor:
        del center
        return loss(params, batch)  # type: ignore[arg-type]

    def outer(params: dict[str, Tensor], batch: object, center: dict[str, Tensor]) -> Tensor:
        distance = torch.stack([(params[k] - center[k]).square().sum() for k in center]).sum()
        return loss(params, batch) + 0.5 * STRENGTH * distance  # type: ignore[arg-type]

    field = odeopt.RegularizedFlow(inner, STRENGTH)
    opt = _rk4(field, steps)
    method = odeopt.InnerLoop(opt, outer, odeopt.TimeGrid.uniform(t1, steps))
    batch = odeopt.TaskBatch(given.tasks.train, given.tasks.validation)
    grads = method(given.params, batch, given.params).grads
    return flat(grads.params) + flat(grads.hparams)


_FLOWS = {"flow": _flow, "regularised flow": _regularised_flow}


def _comln(given: Inputs, t1: float) -> Tensor:
    inner = methods.Inner(LR, round(t1 / LR), 1)
    return _flat_gradient(methods.build("comln", given.problem, inner, solver=TIGHT), given)


def _at_minimiser(given: Inputs) -> Target:
    """The mean over tasks of (I + H / strength)^-1 grad L_val at the minimiser, H dense."""
    loss, layout = given.problem.loss, ravel(given.params, "params")
    start, unflatten = layout[0], layout[1].unflatten
    total, left = torch.zeros_like(start), 0.0
    tasks = given.tasks
    count = tasks.train.x.shape[0]
    for index in range(count):
        train, validation = (type(part)(part.x[index], part.y[index]) for part in tasks)

        def inner(u: Tensor, train: object = train) -> Tensor:
            return loss(unflatten(u), train) + 0.5 * STRENGTH * (u - start).square().sum()

        end = _minimiser(inner, start)
        slope = grad(lambda u, data=validation: loss(unflatten(u), data))(end)
        total += STRENGTH * torch.linalg.solve(hessian(inner)(end), slope)
        left = max(left, grad(inner)(end).norm().item())
    return Target(total / count, left)


def _minimiser(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Gradient descent, which stays in the basin that iMAML's own finds, then Newton's method."""
    slope = grad(objective)
    u = start
    for _ in range(RELAXING_STEPS):
        u = u - RELAXING_LR * slope(u)
    for _ in range(NEWTON_STEPS):
        u = u - torch.linalg.solve(hessian(objective)(u), slope(u))
    return u
