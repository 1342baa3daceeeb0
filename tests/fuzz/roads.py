"""Every way to the gradient of a composition through odeopt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import odeopt
from odeopt.engine.steppers import Refinement

from . import build
from .composition import Composition
from .expected import Numbers, vector
from .problem import Problem, has_rule
from .reference import Steps


def found(c: Composition, problem: Problem, folder: Path) -> tuple[Numbers, Steps | None]:
    """What odeopt says, and the steps that its solver has chosen if it does so."""
    opt = build.make_optimizer(c, problem, folder)
    roads = {
        "value_and_grad": _by_value_and_grad,
        "bilevel": _by_bilevel_problem,
        "func": _by_function_transform,
    }
    with _watched() as made:
        numbers = roads.get(c.road, _by_solve)(c, problem, opt)
        if c.again:
            _assert_same(numbers, roads.get(c.road, _by_solve)(c, problem, opt))
    return numbers, _as_steps(made[-1], build.make_grid(c, problem)) if made else None


def _by_value_and_grad(c: Composition, problem: Problem, opt: odeopt.ODEOptimizer) -> Numbers:
    y = problem.y.clone().requires_grad_(c.batch_grad)
    call = opt.value_and_grad(
        build.make_outer(c), tasks=bool(c.tasks), stop=build.make_event(c, problem)
    )
    batch, grid = build.make_batch(c, problem, y), build.make_grid(c, problem)
    state = build.make_state(c, problem)
    res = call(problem.params, batch, grid, problem.outer, problem.hparams, state)
    return _numbers(c, res)


def _numbers(c: Composition, res: odeopt.Result) -> Numbers:
    exact = c.adjoint in ("discrete", "truncated", "first-order")
    return Numbers(
        res.value,
        vector(pytree.tree_leaves(res.grads.params)),
        vector(_tensors(res.grads.hparams)) if c.hparams else None,
        res.grads.dt if exact else None,
        res.grads.batch[1] if c.batch_grad else None,
    )


def _by_bilevel_problem(c: Composition, problem: Problem, opt: odeopt.ODEOptimizer) -> Numbers:
    def grid(hparams: Any) -> odeopt.TimeGrid:
        return build.make_grid(c, problem, hparams=hparams)

    outer = odeopt.BilevelProblem(opt, build.make_outer(c), grid=grid)
    y = problem.y.clone().requires_grad_(c.batch_grad)
    batch = build.make_batch(c, problem, y)
    res = outer.value_and_grad(problem.hparams, problem.params, batch, problem.outer)
    return _numbers(c, res)


def _by_solve(c: Composition, problem: Problem, opt: odeopt.ODEOptimizer) -> Numbers:
    params, hparams = (pytree.tree_map(_leaf, tree) for tree in (problem.params, problem.hparams))
    y = problem.y.clone().requires_grad_(c.batch_grad)
    dt = problem.dt.clone().requires_grad_()
    batch = build.make_batch(c, problem, y)
    value, final = _solved(c, problem, opt, params, hparams, batch, dt)
    leaves = [*pytree.tree_leaves(params), *_tensors(hparams), dt, *([y] if c.batch_grad else [])]
    grads = [
        torch.zeros_like(x) if g is None else g
        for g, x in zip(
            torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True),
            leaves,
            strict=True,
        )
    ]
    if c.road == "second":
        _refuses_second_derivatives(value, params)
    exact = c.adjoint in ("discrete", "truncated", "first-order")
    size, end = len(pytree.tree_leaves(params)), len(leaves) - 1 - int(c.batch_grad)
    return Numbers(
        value.detach(),
        vector(grads[:size]),
        vector(grads[size:end]) if c.hparams else None,
        grads[end] if exact else None,
        grads[-1][0] if c.batch_grad else None,
        final,
    )


def _solved(
    c: Composition, problem: Problem, opt: odeopt.ODEOptimizer, params: Any, hparams: Any,
    batch: Any, dt: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mean outer loss of a solve, task by task, and its final parameters."""
    grid, state = build.make_grid(c, problem, dt, hparams), build.make_state(c, problem)
    sol = opt.solve(params, batch, grid, hparams, tasks=bool(c.tasks), state=state)
    outer, hp = build.make_outer(c), () if hparams is None else (hparams,)
    values, ends = [], []
    for task in range(c.tasks) if c.tasks else [None]:
        end, observed, own = (_at(tree, task) for tree in (sol.params, sol.observed, problem.outer))
        keywords: dict[str, Any] = {"observed": observed} if c.observe else {}
        if c.buffers and has_rule(c):
            keywords["buffers"] = pytree.tree_map(torch.detach, _at(sol.state.buffers, task))
        values.append(outer(end, own, *hp, **keywords))
        ends.append(torch.cat([leaf.reshape(-1) for leaf in pytree.tree_leaves(end)]))
    return torch.stack(values).mean(), torch.stack(ends)


def _by_function_transform(c: Composition, problem: Problem, opt: odeopt.ODEOptimizer) -> Numbers:
    params, spec = pytree.tree_flatten(problem.params)
    hparams, hspec = pytree.tree_flatten(problem.hparams)
    batch = build.make_batch(c, problem)  # outside of the transform, whose tensors a stream hides
    where = [i for i, leaf in enumerate(hparams) if isinstance(leaf, Tensor)]

    def value(params: list[Tensor], tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        leaves = list(hparams)
        for i, leaf in zip(where, tensors, strict=True):
            leaves[i] = leaf
        trees = pytree.tree_unflatten(params, spec), pytree.tree_unflatten(leaves, hspec)
        return _solved(c, problem, opt, *trees, batch, problem.dt)

    transformed: Any = torch.func.grad_and_value(value, argnums=(0, 1), has_aux=True)
    (g_params, g_hparams), (loss, final) = transformed(params, [hparams[i] for i in where])
    rest = vector(g_hparams) if c.hparams else None
    return Numbers(loss, vector(g_params), rest, final=final)


def _refuses_second_derivatives(value: Tensor, params: Any) -> None:
    leaves = pytree.tree_leaves(params)
    first = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    total = sum((g.sum() for g in first if g is not None), torch.zeros(()))
    if not total.requires_grad:
        return
    try:
        torch.autograd.grad(total, leaves, allow_unused=True)
    except odeopt.SecondOrderError:
        return
    raise AssertionError("a second derivative through a solve was not refused")


def _assert_same(one: Numbers, two: Numbers) -> None:
    for name, first in vars(one).items():
        second = getattr(two, name)
        if first is not None and not torch.equal(first, second):
            raise AssertionError(f"a second call gave other bits: {name} {first} and {second}")


@contextmanager
def _watched() -> Iterator[list[Refinement]]:
    """A list that gets the steps chosen by solvers inside the block, the latest last."""
    made: list[Refinement] = []
    init = Refinement.__init__

    def noted(self: Refinement, *args: Any, **keywords: Any) -> None:
        init(self, *args, **keywords)
        made.append(self)

    Refinement.__init__ = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Refinement.__init__ = init  # type: ignore[method-assign]


def _as_steps(made: Refinement, grid: odeopt.TimeGrid) -> Steps:
    grid = grid.detach()
    length = grid.dt[..., made.parents]
    safe = torch.where(length > 0, length, 1.0)
    lead = (made.times - grid.times[..., made.parents]) / safe
    return Steps(lead, made.dt / safe, made.parents, made.methods)


def _leaf(value: Any) -> Any:
    return value.clone().requires_grad_() if isinstance(value, Tensor) else value


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _at(tree: Any, task: int | None) -> Any:
    return tree if task is None else pytree.tree_map(lambda leaf: leaf[task], tree)
