"""The conformance suite of meta-learning methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odeopt.engine.safety import Status
from odeopt.engine.stats import Stats
from odeopt.errors import DivergenceError, InputError
from odeopt.outer.method import MetaGradient, Method, TaskBatch
from odeopt.testing.problems import SmoothProblem, relative_error, smooth_problem
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree

TASKS = 3
SAME = 1e-10


def check_method(factory: Callable[[Loss], Method], device: torch.device | None = None) -> None:
    """Check a meta-learning method; raises AssertionError with what is wrong.

    Results have the right types and shapes, do not change from call to call and carry no graph;
    inputs stay as they are; tasks are independent of each other and of their order, in a call, in
    `adapt` and in `evaluate`; `adapt` lowers the training loss; wrong task batches and tasks that
    diverge are refused.

    Args:
        factory: makes the method from `loss(params, batch)`, for parameters like those of
            `smooth_problem`.
        device: where to compute.
    """
    problem = smooth_problem(device, tasks=TASKS)
    method = factory(problem.loss)
    assert isinstance(method, Method), f"the factory made a {type(method).__name__}, not a Method"  # pyright: ignore
    hparams = method.init_hparams(problem.params)
    batch = TaskBatch(problem.batch, problem.outer_batch)
    found = method(problem.params, batch, hparams)
    _check_result(found, problem.params, hparams)
    _check_purity(method, found, problem, hparams)
    _check_order(method, found, problem.params, batch, hparams)
    _check_tasks(method, found, problem.params, batch, hparams)
    _check_adapt(method, problem, hparams)
    _check_evaluate(method, problem.params, batch, hparams)
    _check_refusals(method, problem.params, batch, hparams)


def _check_result(found: MetaGradient, params: PyTree, hparams: PyTree) -> None:
    assert isinstance(found, MetaGradient), f"a call returns {type(found)}, not a MetaGradient"  # pyright: ignore
    assert isinstance(found.stats, Stats), f"stats is {found.stats!r}, not a Stats"  # pyright: ignore
    assert found.value.ndim == 0, f"value has the shape {tuple(found.value.shape)}, not ()"
    for name, per_task in (("values", found.values), ("status", found.status)):
        shape = tuple(per_task.shape)
        assert shape == (TASKS,), f"{name} has the shape {shape}, not [tasks]"
    codes = found.status.tolist()
    assert codes == [int(Status.OK)] * TASKS, f"tasks that are well have the status {codes}"
    error = relative_error(found.value, found.values.mean())
    assert error < 1e-14, f"value is not the mean of values: relative error {error:.1e}"
    _check_like(found.grads.params, params, "grads.params")
    _check_like(found.grads.hparams, hparams, "grads.hparams")


def _check_like(found: PyTree, expected: PyTree, what: str) -> None:
    structures = [tree.structure(one) for one in (found, expected)]
    assert structures[0] == structures[1], f"{what} is {structures[0]}, not {structures[1]}"
    pairs = zip(tree.leaves(found), tree.leaves(expected), tree.paths(expected), strict=True)
    for mine, like, path in pairs:
        if not tree.is_differentiable(like):
            assert mine is None, f"{what}{path} is {mine!r}; expected None, as it is not learned"
            continue
        kind = (like.shape, like.dtype, like.device)
        own = (mine.shape, mine.dtype, mine.device) if isinstance(mine, Tensor) else type(mine)
        assert own == kind, f"{what}{path} is {own}; expected {kind}"
        assert bool(torch.isfinite(mine).all()), f"{what}{path} is not finite"


def _check_purity(
    method: Method, found: MetaGradient, problem: SmoothProblem, hparams: PyTree
) -> None:
    """A second call, with inputs that require grad, gives the same and leaves no trace."""
    given = (problem.params, problem.batch, problem.outer_batch, hparams)
    tracked: Any = tree.map_tensors(lambda x: x.detach().clone().requires_grad_(), given)
    params, train, validation, mine = tracked
    again = method(params, TaskBatch(train, validation), mine)
    adapted = method.adapt(params, train, mine)
    values = method.evaluate(params, TaskBatch(train, validation), mine)
    for x in tree.tensors((*_numbers(again), adapted, values)):
        assert not x.requires_grad, "a result requires grad"
    for x, before in zip(tree.tensors(tracked), tree.tensors(given), strict=True):
        assert torch.equal(x, before), "an input was modified"
        assert x.grad is None, "a call left something in .grad of an input"
    pairs = zip(tree.tensors(_numbers(again)), tree.tensors(_numbers(found)), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs), "a second call gives other numbers"


def _numbers(found: MetaGradient) -> tuple[Any, ...]:
    return found.value, found.values, tuple(found.grads), found.status, dict(found.diagnostics)


def _pick(batch: PyTree, tasks: list[int]) -> Any:
    return tree.map_tensors(lambda x: x[tasks], batch)


def _check_order(
    method: Method, found: MetaGradient, params: PyTree, batch: TaskBatch, hparams: PyTree
) -> None:
    order = [2, 0, 1]
    permuted = method(params, _pick(batch, order), hparams)
    error = relative_error(permuted.values, found.values[order])
    assert error < SAME, f"values do not follow the order of the tasks: relative error {error:.1e}"
    error = relative_error(tuple(permuted.grads), tuple(found.grads))
    assert error < SAME, f"the gradient depends on the order of the tasks: {error:.1e}"


def _check_tasks(
    method: Method, found: MetaGradient, params: PyTree, batch: TaskBatch, hparams: PyTree
) -> None:
    alone = [method(params, _pick(batch, [task]), hparams) for task in range(TASKS)]
    error = relative_error(found.values, torch.cat([one.values for one in alone]))
    assert error < SAME, f"a task's value depends on the other tasks: relative error {error:.1e}"
    grads: list[Any] = [tree.tensors(tuple(one.grads)) for one in alone]
    mean = [torch.stack(leaves).mean(0) for leaves in zip(*grads, strict=True)]
    error = relative_error(tree.tensors(tuple(found.grads)), mean)
    assert error < SAME, f"the gradient is not the mean over tasks: relative error {error:.1e}"


def _check_adapt(method: Method, problem: SmoothProblem, hparams: PyTree) -> None:
    adapted = method.adapt(problem.params, problem.batch, hparams)
    expected = tree.map_tensors(lambda x: x.expand(TASKS, *x.shape), problem.params)
    _check_like(adapted, expected, "adapt(...)")
    for task in range(TASKS):
        alone = method.adapt(problem.params, _pick(problem.batch, [task]), hparams)
        error = relative_error(_pick(adapted, [task]), alone)
        assert error < SAME, f"what task {task} adapts to depends on the others: {error:.1e}"

    def losses(params: PyTree) -> Tensor:
        return torch.func.vmap(problem.loss)(params, problem.batch)

    before, after = losses(expected).mean().item(), losses(adapted).mean().item()
    assert after < before, f"adapt takes the training loss from {before:.4g} to {after:.4g}"


def _check_evaluate(method: Method, params: PyTree, batch: TaskBatch, hparams: PyTree) -> None:
    values = method.evaluate(params, batch, hparams)
    assert values.shape == (TASKS,), f"evaluate gives the shape {tuple(values.shape)}, not [tasks]"
    for task in range(TASKS):
        alone = method.evaluate(params, _pick(batch, [task]), hparams)
        error = relative_error(values[[task]], alone)
        assert error < SAME, f"the evaluation of task {task} depends on the others: {error:.1e}"


def _check_refusals(method: Method, params: PyTree, batch: TaskBatch, hparams: PyTree) -> None:
    wrong: Any
    for wrong in (list(batch), batch.train[0], (*batch, batch.train)):
        try:
            method(params, wrong, hparams)
        except InputError:
            continue
        raise AssertionError(f"a task batch that is no pair ({type(wrong).__name__}) was taken")
    inputs, targets = batch.train
    targets = targets.clone()
    targets[1, 0] = torch.nan
    try:
        method(params, TaskBatch((inputs, targets), batch.validation), hparams)
    except DivergenceError:
        return
    raise AssertionError("a task with NaN in its training batch does not raise DivergenceError")
