"""The objects of odeopt that a composition stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import odeopt
from odeopt.inner import RuleState

from .composition import SECOND_ORDER, Composition
from .problem import (
    BODY,
    EXAMPLES,
    GROUPS,
    HEAD,
    LEARNED,
    NOISE_SEED,
    ORDER_SEED,
    Problem,
    event_value,
    first_buffers,
    has_rule,
    is_odd,
    next_buffers,
    option_values,
    outer_loss,
    train_loss,
)

STEP_TOLERANCE = 1e-4
"""Of solvers that choose their steps."""

SOLVERS: dict[str, Callable[[], Any]] = {
    "euler": odeopt.Euler,
    "modified-euler": odeopt.ModifiedEuler,
    "midpoint": odeopt.Midpoint,
    "rk4": odeopt.RK4,
    "chebyshev-2": odeopt.Chebyshev2,
    "chebyshev-3": odeopt.Chebyshev3,
    "stabilized-rk": lambda: odeopt.StabilizedRK(1e-3, 1e-4),
    "stabilized-rk-fixed": lambda: odeopt.StabilizedRK(stages=4),
    "adaptive": lambda: odeopt.Adaptive(STEP_TOLERANCE, STEP_TOLERANCE),
    "torchdiffeq": lambda: odeopt.Torchdiffeq("midpoint"),
    "dormand-prince": lambda: odeopt.DormandPrince(1e-12, 1e-12),
}
"""By the name in the registry; "-fixed" is a second form of one."""

ADJOINTS: dict[str, Callable[[Any], Any]] = {
    "discrete": odeopt.DiscreteAdjoint,
    "truncated": lambda mode: odeopt.TruncatedAdjoint(2, mode),
    "first-order": lambda mode: odeopt.FirstOrderAdjoint(),
    "backsolve": lambda mode: odeopt.BacksolveAdjoint(odeopt.RK4(), mode),
    "implicit": lambda mode: odeopt.ImplicitAdjoint(
        odeopt.ConjugateGradient(20), stationarity=None, differentiation=mode
    ),
    "continuous-euler": lambda mode: odeopt.ContinuousAdjoint(odeopt.Euler(), mode),
    "continuous-modified-euler": lambda mode: odeopt.ContinuousAdjoint(
        odeopt.ModifiedEuler(), mode
    ),
    "continuous-midpoint": lambda mode: odeopt.ContinuousAdjoint(odeopt.Midpoint(), mode),
    "continuous-rk4": lambda mode: odeopt.ContinuousAdjoint(odeopt.RK4(), mode),
}

DIFFERENTIATIONS: dict[str, Callable[[], Any]] = {
    "reverse": odeopt.ReverseMode,
    "forward-over-reverse": odeopt.ForwardOverReverse,
}


TRANSFORMS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "clip-norm": lambda: odeopt.clip_by_norm(0.6),
    "clip-value": lambda: odeopt.clip_by_value(0.4),
}


def make_optimizer(c: Composition, problem: Problem, folder: Path) -> odeopt.ODEOptimizer:
    """The four choices, put together."""
    return odeopt.ODEOptimizer(
        make_field(c),
        None if has_rule(c) else SOLVERS[c.solver](),
        ADJOINTS[c.adjoint](DIFFERENTIATIONS[c.differentiation]()),
        make_checkpoints(c, problem, folder),
        safety=odeopt.Safety(probe=c.probe),
        compile=None if c.compile == "none" else c.compile,
    )


def make_field(c: Composition) -> Any:
    """The field or update rule."""
    options = {name: _option(c, name, value) for name, value in option_values(c).items()}
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    flag = {"sgd": "nesterov", "adam": "amsgrad", "adamw": "amsgrad", "rmsprop": "centered"}
    if has_rule(c):
        options |= {flag[c.field]: is_odd(c), "micro_batches": c.micro_batches}
        options["gradient_transform"] = TRANSFORMS[c.transform]()
        if c.buffers:
            options["buffers"] = first_buffers()
    else:
        options["has_aux"] = c.variant >= 2
    if c.field == "regularized-flow" and is_odd(c) and c.hparams:
        options["center"] = lambda hparams: hparams["center"]
    if c.field == "nesterov-flow" and c.options != "plain":
        options["shift"] = 0.5
    return odeopt.FIELDS.get(c.field)(make_loss(c), **options)


def _option(c: Composition, name: str, value: Any) -> Any:
    def learned(hparams: Any) -> Tensor:
        return hparams["options"][name]

    if value == LEARNED:
        return learned
    if value == GROUPS:
        if c.shape == "tree":
            return {"body": BODY, "head": (HEAD, learned)}
        return lambda hparams: hparams["entries"]
    return value


def make_loss(c: Composition) -> Callable[..., Any]:
    """The training loss as odeopt calls it."""

    def loss(params: Any, batch: Any, hparams: Any = None, **keywords: Any) -> Any:
        noise = torch.rand(batch[0].shape, dtype=torch.float64) if c.random else None
        value = train_loss(params, batch, hparams, noise, **keywords)
        if "buffers" in keywords:
            return value, next_buffers(keywords["buffers"], batch)
        return (value, "aux") if c.variant >= 2 and not has_rule(c) else value

    return loss


def make_outer(c: Composition) -> Callable[..., Any]:
    """The outer loss as odeopt calls it."""

    def outer(
        params: Any, batch: Any, *hparams: Any, observed: Any = (), **keywords: Any
    ) -> Tensor:
        parts = [parts_of(state) for state in observed]
        return outer_loss(params, batch, *hparams, observed=parts, **keywords)

    return outer


def parts_of(state: Any) -> list[Tensor]:
    """The tensors of a state but for its buffers."""
    if isinstance(state, RuleState):
        state = (state.params, state.slots)
    return pytree.tree_leaves(state)


def make_checkpoints(c: Composition, problem: Problem, folder: Path) -> Any:
    """The schedule, in its store."""
    if c.checkpoints == "memory-budget":
        size = 8 * state_size(c, problem) * max(c.tasks, 1)
        device = {"device": c.slots, "mixed": 1}.get(c.store, 0) * size
        host = {"host": c.slots, "mixed": 1}.get(c.store, 0) * size
        disk = {"disk": c.slots, "mixed": c.slots}.get(c.store, 0) * size
        return odeopt.MemoryBudget(device, host or None, (folder, disk) if disk else None)
    if c.checkpoints == "graphs":
        return odeopt.Graphs(odeopt.Every(c.slots), 1000 * c.slots * state_size(c, problem))
    store = {"device": odeopt.Device, "host": odeopt.Host}.get(c.store, lambda: odeopt.Disk(folder))
    return odeopt.CHECKPOINTS.get(c.checkpoints)(c.slots, store=store())


def state_size(c: Composition, problem: Problem) -> int:
    """How many numbers the state of a task has."""
    state, _ = make_field(c).init(problem.params, problem.hparams)
    return sum(leaf.numel() for leaf in pytree.tree_leaves(state))


def make_grid(
    c: Composition, problem: Problem, dt: Tensor | None = None, hparams: Any = None
) -> odeopt.TimeGrid:
    """The grid; `dt` and the `hparams` that rates are learned in may be given with a graph."""
    dt = problem.dt if dt is None else dt
    if c.learned_rates:
        dt = dt * (problem.hparams if hparams is None else hparams)["rates"].exp()
    if c.rates == "uniform" and not dt.requires_grad and problem.stops is None:
        horizon = dt.sum(-1)
        grid = odeopt.TimeGrid.uniform(horizon, c.steps, observe=c.observe)
    else:
        grid = odeopt.TimeGrid.from_lr(dt, observe=c.observe)
    return grid if problem.stops is None else grid.stopping(problem.stops)


def make_batch(c: Composition, problem: Problem, y: Tensor | None = None) -> Any:
    """The batch or the stream; `y` may be given with a graph."""
    seed = NOISE_SEED if c.random else None
    x, index = problem.x, problem.index
    y = problem.y if y is None else y
    first = (x[0], y[0], index[0])
    match c.batches:
        case "tensor":
            return first
        case "constant":
            return odeopt.Stream.constant(first, NOISE_SEED)
        case "indexed":
            return odeopt.Stream(lambda k: (x[k], y[k], index[k]), seed)
        case "stacked":
            return odeopt.Stream.stacked((x, y, index), seed)
        case "minibatches":
            return odeopt.Stream.minibatches(first, EXAMPLES, ORDER_SEED, random_loss=c.random)
        case _:
            data = list(zip(*first, strict=True))
            return odeopt.Stream.from_dataset(data, EXAMPLES, ORDER_SEED, random_loss=c.random)


def make_state(c: Composition, problem: Problem) -> Any:
    """The warm start in odeopt's structure; None if there is none."""
    if problem.state is None:
        return None
    parts = {name: _like(problem.params, flat) for name, flat in problem.state.items()}
    if has_rule(c):
        u = parts.pop("u")
        return RuleState(u, parts, first_buffers() if c.buffers else ())
    return (parts["u"], parts["v"]) if c.field in SECOND_ORDER else parts["u"]


def make_event(c: Composition, problem: Problem) -> Any:
    """The event, or None."""
    if c.event == 0:
        return None
    level = problem.level

    def event(params: Any, batch: Any, hparams: Any = None, **buffers: Any) -> Tensor:
        return event_value(level, params, batch, hparams)

    first = (problem.x[0], problem.y[0], problem.index[0])
    return odeopt.StopWhen(event, None if c.batches == "tensor" else first)


def _like(params: Any, flat: Tensor) -> Any:
    leaves, spec = pytree.tree_flatten(params)
    sizes = [leaf.numel() for leaf in leaves]
    found = [part.reshape(leaf.shape) for part, leaf in zip(flat.split(sizes), leaves, strict=True)]
    return pytree.tree_unflatten(found, spec)
