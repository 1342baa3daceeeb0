"""The gradient without a package: unrolled autograd, vmapped loops, and bare compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

import odeopt
from benchmarks.peers.ours import fastest_backend
from benchmarks.peers.problems import Problem
from benchmarks.peers.runner import Outcome, Runner, Setup
from benchmarks.problems.models import Parameters
from benchmarks.problems.tasks import Batch
from odeopt.engine.compile import Compiled, record


def _steps(setup: Setup, setting: float | None) -> tuple[int, float]:
    steps = setup.steps if setting is None else round(setting)
    return steps, setup.t1 / steps


def unrolled(setup: Setup, setting: float | None) -> Runner:
    """`torch.autograd` through the loop, task by task."""
    problem, (steps, lr) = setup.problem, _steps(setup, setting)

    def descend(y: Parameters, train: Batch, count: int) -> Parameters:
        for _ in range(count):
            slopes = torch.autograd.grad(
                problem.loss(y, train), list(y.values()), create_graph=True
            )
            y = {name: y[name] - lr * slope for name, slope in zip(y, slopes, strict=True)}
        return y

    def run(count: int) -> Outcome:
        total: Tensor | None = None
        for train, validation in problem.each():
            start = {name: leaf.detach().requires_grad_() for name, leaf in problem.params.items()}
            value = problem.loss(descend(start, train, count), validation)
            found = torch.autograd.grad(value / problem.count, list(start.values()))
            flat = torch.cat([leaf.flatten() for leaf in found])
            total = flat if total is None else total + flat
        assert total is not None, "there is a task"
        return Outcome(total)

    return Runner(steps, run)


class Functions(NamedTuple):
    """A problem on flat states of all tasks, [tasks, d], without compilation.

    Attributes:
        start: The initial states.
        step: `step(dt, y, x, targets)`, one step of gradient descent.
        pull: `pull(dt, y, lam, x, targets)`, its transpose, and the gradient w.r.t. dt.
        outer: `outer(y)`, the gradient of the mean validation loss.
    """

    start: Tensor
    step: Callable[..., Tensor]
    pull: Callable[..., tuple[Tensor, Tensor]]
    outer: Callable[[Tensor], Tensor]


def functions(problem: Problem) -> Functions:
    """The parts of a loop over steps."""
    start, layout = problem.raveled()

    def slope(y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return grad(lambda u: problem.loss(layout.unflatten(u), Batch(x, targets)))(y)

    def step(dt: Tensor, y: Tensor, x: Tensor, targets: Tensor) -> Tensor:
        return y - dt * slope(y, x, targets)

    def pull(
        dt: Tensor, y: Tensor, lam: Tensor, x: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        value, pullback = vjp(lambda u: slope(u, x, targets), y)[:2]
        return lam - dt * pullback(lam)[0], -(lam * value).sum()

    def outer(y: Tensor) -> Tensor:
        return vmap(slope)(y, *problem.tasks.validation) / problem.count

    return Functions(
        start.expand(problem.count, -1).contiguous(),
        vmap(step, in_dims=(None, 0, 0, 0)),
        vmap(pull, in_dims=(None, 0, 0, 0, 0)),
        outer,
    )


def vmap_adjoint(setup: Setup, setting: float | None) -> Runner:
    """States kept in a list, then the adjoint recursion; each vmapped over tasks."""
    problem, (steps, lr) = setup.problem, _steps(setup, setting)
    parts, (x, targets) = functions(problem), problem.tasks.train
    dt = torch.tensor(lr, dtype=parts.start.dtype, device=problem.device)

    @torch.no_grad()
    def run(count: int) -> Outcome:
        kept = [parts.start]
        for _ in range(count):
            kept.append(parts.step(dt, kept[-1], x, targets))
        lam = parts.outer(kept.pop())
        while kept:
            lam, _ = parts.pull(dt, kept.pop(), lam, x, targets)
        return Outcome(lam.sum(0))

    return Runner(steps, run)


def vmap_unrolled(setup: Setup, setting: float | None) -> Runner:
    """`vmap(grad(...))` of the whole loop, on all tasks at once."""
    problem, (steps, lr) = setup.problem, _steps(setup, setting)
    layout = problem.raveled()[1]

    def run(count: int) -> Outcome:
        def after(params: Parameters, train: Any, validation: Any) -> Tensor:
            y = params
            for _ in range(count):
                slopes = grad(problem.loss)(y, train)
                y = {name: leaf - lr * slopes[name] for name, leaf in y.items()}
            return problem.loss(y, validation)

        each = vmap(grad(after), in_dims=(None, 0, 0))(problem.params, *problem.tasks)
        mean = {name: leaf.mean(0) for name, leaf in each.items()}
        return Outcome(layout.flatten(mean, "gradient"))

    return Runner(steps, run)


def kernels(setup: Setup, setting: float | None) -> Runner:
    """The compiled step N times and its compiled transpose N times on real states, no more.

    The gradient of the validation loss, with which the way back begins, is computed once for
    each number of steps and kept.
    """
    problem, (steps, lr) = setup.problem, _steps(setup, setting)
    parts, (x, targets) = functions(problem), problem.tasks.train
    dt = torch.tensor(lr, dtype=parts.start.dtype, device=problem.device)
    step = compiled(parts.step, [dt, parts.start, x, targets])
    pull = compiled(parts.pull, [dt, parts.start, torch.ones_like(parts.start), x, targets])
    ends: dict[int, Tensor] = {}

    @torch.no_grad()
    def run(count: int) -> Outcome:
        kept = [parts.start]
        for _ in range(count):
            kept.append(step(dt, kept[-1], x, targets)[0])
        end = kept.pop()
        lam = ends[count] if count in ends else ends.setdefault(count, parts.outer(end))
        while kept:
            lam, _ = pull(dt, kept.pop(), lam, x, targets)
        return Outcome(lam.sum(0))

    return Runner(steps, run)


def compiled(function: Callable[..., Any], inputs: list[Tensor]) -> Compiled:
    """A function of tensors, traced and compiled as odeopt's kernels are; it returns a sequence.

    Raises:
        RuntimeError: It gives other numbers than the function does.
    """

    def sequence(*tensors: Tensor) -> list[Tensor]:
        found = function(*tensors)
        return [found] if isinstance(found, Tensor) else list(found)

    example = [leaf.clone() for leaf in inputs]  # tracing merges tensors that are the same
    backend = odeopt.BACKENDS.get(fastest_backend(inputs[0].device))()
    run = backend.compile(record(sequence, example), example)
    for want, got in zip(sequence(*inputs), run(*inputs), strict=True):
        gap = (want - got).abs().max() / want.abs().max()
        if gap > torch.finfo(want.dtype).eps ** 0.6:
            raise RuntimeError(f"the compiled kernel is off by {gap.item():.1e}")
    return run
