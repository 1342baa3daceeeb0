"""What the reference says about a composition: each adjoint by its own definition.

The exact adjoints are autograd through the unrolled loop, those that leave steps out with these
steps detached. The approximate ones are not comparable with it at 1e-9: they are compared with
their own formulas, written out here with dense products. Their gradients w.r.t. step sizes are not
compared, having no definition outside odeopt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import formulas
from .composition import CONTINUOUS, NO_MESH, Composition
from .problem import Problem
from .reference import Reference, State, Steps, Way


@dataclass(frozen=True)
class Numbers:
    """Values and gradients; None is not compared. Gradients of the mean over tasks.

    Attributes:
        value: the outer loss.
        params: gradients w.r.t. the leaves of params, as one vector.
        hparams: likewise.
        dt: w.r.t. the step sizes of the grid; with tasks of each task's own value.
        batch: w.r.t. the targets of the batch; likewise.
        final: the final parameters, one vector, or one for each task.
    """

    value: Tensor
    params: Tensor
    hparams: Tensor | None = None
    dt: Tensor | None = None
    batch: Tensor | None = None
    final: Tensor | None = None


def expected(c: Composition, problem: Problem, steps: Steps | None = None) -> Numbers:
    """The numbers of a composition; `steps` are those that its solver has chosen."""
    reference = Reference(c, problem, steps)
    if c.event:
        return _differentiated(reference, _with_event)
    if c.adjoint in CONTINUOUS:
        return _pulled(reference, partial(_continuous, nodes=_nodes))
    if c.adjoint == "backsolve":
        return _pulled(reference, _backsolve)
    if c.adjoint == "implicit":
        return _pulled(reference, _implicit)
    return _differentiated(reference, _unrolled)


def _unrolled(reference: Reference, task: int | None) -> tuple[Tensor, State]:
    way = reference.make_steps(task)
    return reference.outer(task, _observed(reference, way), way.states[-1]), way.states[-1]


def _observed(reference: Reference, way: Way) -> list[State]:
    return [way.states[way.place(index)] for index in reference.c.observe]


def _with_event(reference: Reference, task: int | None) -> tuple[Tensor, State]:
    """The loop until the event; the last length by Newton's method, whose last step is kept."""
    state = reference.start()
    if reference.event(task, state) > 0:
        for k, length in enumerate(reference.lengths(task)):
            after = reference.step(task, k, length, state)
            if reference.event(task, after) <= 0:
                state = _cut(reference, task, k, length, state)
                break
            state = after
    return reference.outer(task, [], state), state


def _cut(reference: Reference, task: int | None, k: int, length: Tensor, state: State) -> State:
    def value(s: Tensor) -> Tensor:
        return reference.event(task, reference.step(task, k, s, state))

    low, high = torch.zeros_like(length).detach(), length.detach()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) > 0 else (low, middle)
    last = high.requires_grad_()
    (rate,) = torch.autograd.grad(value(last), last)
    last = last.detach()
    return reference.step(task, k, last - value(last) / rate, state)


def _differentiated(reference: Reference, run: Any) -> Numbers:
    """Autograd through a function `(reference, task) -> outer loss, end`."""
    c, problem = reference.c, reference.problem
    found = [run(reference, task) for task in reference.tasks]
    value = torch.stack([loss for loss, _ in found]).mean()
    own = c.road in ("solve", "second")
    dt = reference.dt if own else reference.rates
    grads = _grad(value, [*reference.leaves, dt])
    count = 1 if own else len(found)
    g_dt = grads[-1] * (1 if own else count)
    if own and problem.stops is not None:
        g_dt = torch.where(torch.arange(c.steps) < problem.stops[..., None], g_dt, 0.0)
    return _collect(reference, value, grads[:-1], g_dt, [end for _, end in found])


def _collect(
    reference: Reference, value: Tensor, grads: list[Tensor], g_dt: Tensor | None, ends: list[State]
) -> Numbers:
    c, size = reference.c, len(reference.param_leaves)
    g_params, g_rest, g_y = grads[:size], grads[size:-1], grads[-1]
    final = torch.stack([end.parts["u"] for end in ends])
    count = len(ends) if c.tasks and c.road in ("value_and_grad", "bilevel") else 1
    return Numbers(
        value.detach(),
        vector(g_params),
        vector(g_rest) if c.hparams else None,
        None if g_dt is None or c.road == "func" else g_dt,
        count * g_y[0] if c.batch_grad and c.road != "func" else None,
        final.detach() if c.road in ("solve", "second", "func") else None,
    )


def _pulled(reference: Reference, back: Any) -> Numbers:
    """A backward sweep `(reference, task, way, lam, cotangents) -> (lam_0, gradients)`."""
    total: list[Tensor] = [torch.zeros_like(leaf) for leaf in reference.leaves]
    values, ends = [], []
    for task in reference.tasks:
        with torch.no_grad():
            way = reference.make_steps(task)
        states = [_leaves(state) for state in way.states]
        way = Way(states, way.grid_index, way.starts, way.lengths)
        value = reference.outer(task, _observed(reference, way), states[-1])
        places = [way.place(index) for index in reference.c.observe]
        wanted = [reference.pack(state) for state in states]
        packed = [torch.cat(g) for g in _seeds(value, states)]
        cotangents = {place: packed[place] for place in places if place != len(states) - 1}
        direct = _grad(value, reference.leaves)
        nodes = [y.detach() for y in wanted]
        lam, path = back(reference, task, way, nodes, packed[-1], cotangents)
        first = _grad(torch.dot(lam, reference.pack(reference.start())), reference.leaves)
        for i, parts in enumerate(zip(direct, path, first, strict=True)):
            total[i] = total[i] + sum(parts) / len(reference.tasks)
        values.append(value.detach())
        ends.append(states[-1])
    return _collect(reference, torch.stack(values).mean(), total, None, ends)


def _seeds(value: Tensor, states: list[State]) -> list[list[Tensor]]:
    return [_grad(value, list(state.parts.values())) for state in states]


def _pull(
    reference: Reference, task: int | None, t: Tensor, y: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The velocity, its product with the seed, and that of what it depends on beside the state."""
    point = y.detach().requires_grad_()
    value = reference.velocity(task, 0, t.detach(), point)
    g_y, *rest = _grad(torch.dot(value, seed.detach()), [point, *reference.leaves])
    return value.detach(), g_y, rest


def _continuous(
    reference: Reference, task: int | None, way: Way, ys: list[Tensor], lam: Tensor,
    cotangents: dict[int, Tensor], nodes: Any,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    total = [torch.zeros_like(leaf) for leaf in reference.leaves]
    rows, weights, moments = formulas.BACKWARD[reference.c.adjoint]
    mesh = nodes(reference.c, len(ys) - 1, cotangents)
    for a, b in reversed(list(pairwise(mesh))):
        if b in cotangents:
            lam = lam + cotangents[b]
        t, h = way.starts[a].detach(), sum(way.lengths[a:b]).detach()
        state = partial(_between, reference, task, t, h, ys[a], ys[b])
        pulls: list[Tensor] = []
        step = torch.zeros_like(lam)
        for row, weight, moment in zip(rows, weights, moments, strict=True):
            seed = lam + h * sum((a * p for a, p in zip(row, pulls, strict=True)), 0 * lam)
            where = 1 - moment
            _, g_y, rest = _pull(reference, task, t + where * h, state(where), seed)
            pulls.append(g_y)
            step = step + weight * h * g_y
            total = [old + weight * h * g for old, g in zip(total, rest, strict=True)]
        lam = lam + step
    return (lam + cotangents[0] if 0 in cotangents else lam), total


def _nodes(c: Composition, steps: int, cotangents: dict[int, Tensor]) -> list[int]:
    """The kept states of a schedule, and the end."""
    if c.checkpoints in NO_MESH:
        kept = range(steps)
    elif c.checkpoints in ("every", "graphs"):
        kept = range(0, steps, c.slots)
    else:
        count = min(c.slots, steps)
        kept = [i * steps // count for i in range(count)]
    return sorted({*kept, *cotangents, steps})


def _between(
    reference: Reference, task: int | None, t: Tensor, h: Tensor, y0: Tensor, y1: Tensor,
    where: float,
) -> Tensor:  # fmt: skip
    """The cubic Hermite polynomial through two states, by its four basis functions."""
    if where in (0.0, 1.0):
        return y1 if where else y0
    slopes = [reference.velocity(task, 0, t + p * h, y).detach() for p, y in ((0, y0), (1, y1))]
    s = where
    start, end = 2 * s**3 - 3 * s**2 + 1, -2 * s**3 + 3 * s**2
    first, last = s**3 - 2 * s**2 + s, s**3 - s**2
    return start * y0 + end * y1 + h * (first * slopes[0] + last * slopes[1])


def _backsolve(
    reference: Reference, task: int | None, way: Way, ys: list[Tensor], lam: Tensor,
    cotangents: dict[int, Tensor],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    total = [torch.zeros_like(leaf) for leaf in reference.leaves]
    y = ys[-1]
    rows, weights, moments = formulas.BACKWARD["continuous-rk4"]
    for k in reversed(range(len(way.lengths))):
        h, t = way.lengths[k].detach(), (way.starts[k] + way.lengths[k]).detach()
        slopes: list[Tensor] = []
        pulls: list[Tensor] = []
        moved, step = torch.zeros_like(y), torch.zeros_like(lam)
        for row, weight, moment in zip(rows, weights, moments, strict=True):
            seed = lam + h * sum((a * p for a, p in zip(row, pulls, strict=True)), 0 * lam)
            at = y - h * sum((a * f for a, f in zip(row, slopes, strict=True)), 0 * y)
            value, g_y, rest = _pull(reference, task, t - moment * h, at, seed)
            slopes.append(value)
            pulls.append(g_y)
            moved, step = moved + weight * h * value, step + weight * h * g_y
            total = [old + weight * h * g for old, g in zip(total, rest, strict=True)]
        y, lam = y - moved, lam + step
        if k in cotangents:
            lam = lam + cotangents[k]
    return lam, total


def _implicit(
    reference: Reference, task: int | None, way: Way, ys: list[Tensor], lam: Tensor,
    cotangents: dict[int, Tensor],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    end = ys[-1].requires_grad_()
    t = way.starts[-1] if way.starts else torch.zeros(())
    slope = -reference.velocity(task, 0, t, end)
    hessian = torch.stack([_grad(entry, [end])[0] for entry in slope])
    v = torch.linalg.solve(hessian, lam)
    path = _grad(-torch.dot(slope, v), reference.leaves)
    return cotangents.get(0, torch.zeros_like(lam)), path


def _leaves(state: State) -> State:
    return State(
        {name: part.detach().requires_grad_() for name, part in state.parts.items()}, state.buffers
    )


def _grad(value: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def vector(leaves: list[Tensor]) -> Tensor:
    """Tensors as one vector."""
    return torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
