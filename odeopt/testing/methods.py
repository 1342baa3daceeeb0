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
from odeopt.testing.problems import SmoothProblem, check_close, smooth_problem
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
    case = _Case(method, problem)
    _check_result(case.result, problem.params, case.hparams)
    _check_purity(case)
    _check_order(case)
    _check_tasks(case)
    _check_adapt(case)
    _check_evaluate(case)
    _check_refusals(case)


class _Case:
    """A method, what it is called with, and what it gives."""

    def __init__(self, method: Method, problem: SmoothProblem) -> None:
        self.method, self.loss, self.params = method, problem.loss, problem.params
        self.batch = TaskBatch(problem.batch, problem.outer_batch)
        self.hparams = method.init_hparams(problem.params)
        self.result = self(self.batch)

    def __call__(self, batch: TaskBatch) -> MetaGradient:
        return self.method(self.params, batch, self.hparams)


def _check_result(result: MetaGradient, params: PyTree, hparams: PyTree) -> None:
    assert isinstance(result, MetaGradient), f"a call returns {type(result)}, not a MetaGradient"  # pyright: ignore
    assert isinstance(result.stats, Stats), f"stats is {result.stats!r}, not a Stats"  # pyright: ignore
    assert result.value.ndim == 0, f"value has the shape {tuple(result.value.shape)}, not ()"
    for name, per_task in (("values", result.values), ("status", result.status)):
        shape = tuple(per_task.shape)
        assert shape == (TASKS,), f"{name} has the shape {shape}, not [tasks]"
    codes = result.status.tolist()
    assert codes == [int(Status.OK)] * TASKS, f"tasks that are well have the status {codes}"
    check_close(result.value, result.values.mean(), 1e-14, "value is not the mean of values")
    _check_like(result.grads.params, params, "grads.params")
    _check_like(result.grads.hparams, hparams, "grads.hparams")


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


def _check_purity(case: _Case) -> None:
    """A second call, with inputs that require grad, gives the same and leaves no trace."""
    inputs = (case.params, case.batch, case.hparams)
    tracked: Any = tree.map_tensors(lambda x: x.detach().clone().requires_grad_(), inputs)
    params, batch, hparams = tracked
    again = case.method(params, batch, hparams)
    adapted = case.method.adapt(params, batch.train, hparams)
    values = case.method.evaluate(params, batch, hparams)
    for x in tree.tensors((*_numbers(again), adapted, values)):
        assert not x.requires_grad, "a result requires grad"
    for x, before in zip(tree.tensors(tracked), tree.tensors(inputs), strict=True):
        assert torch.equal(x, before), "an input was modified"
        assert x.grad is None, "a call left something in .grad of an input"
    pairs = zip(tree.tensors(_numbers(again)), tree.tensors(_numbers(case.result)), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs), "a second call gives other numbers"


def _numbers(result: MetaGradient) -> tuple[Any, ...]:
    return result.value, result.values, tuple(result.grads), result.status, dict(result.diagnostics)


def _pick(batch: PyTree, tasks: list[int]) -> Any:
    return tree.map_tensors(lambda x: x[tasks], batch)


def _check_order(case: _Case) -> None:
    order = [2, 0, 1]
    permuted, plain = case(_pick(case.batch, order)), case.result
    message = "values do not follow the order of the tasks"
    check_close(permuted.values, plain.values[order], SAME, message)
    message = "the gradient depends on the order of the tasks"
    check_close(tuple(permuted.grads), tuple(plain.grads), SAME, message)


def _check_tasks(case: _Case) -> None:
    alone = [case(_pick(case.batch, [task])) for task in range(TASKS)]
    values = torch.cat([one.values for one in alone])
    check_close(case.result.values, values, SAME, "a task's value depends on the other tasks")
    grads: list[Any] = [tree.tensors(tuple(one.grads)) for one in alone]
    mean = [torch.stack(leaves).mean(0) for leaves in zip(*grads, strict=True)]
    own = tree.tensors(tuple(case.result.grads))
    check_close(own, mean, SAME, "the gradient is not the mean over tasks")


def _check_adapt(case: _Case) -> None:
    train = case.batch.train
    adapted = case.method.adapt(case.params, train, case.hparams)
    expected = tree.map_tensors(lambda x: x.expand(TASKS, *x.shape), case.params)
    _check_like(adapted, expected, "adapt(...)")
    for task in range(TASKS):
        alone = case.method.adapt(case.params, _pick(train, [task]), case.hparams)
        message = f"what task {task} adapts to depends on the others"
        check_close(_pick(adapted, [task]), alone, SAME, message)
    losses = torch.func.vmap(case.loss)
    before, after = (losses(params, train).mean().item() for params in (expected, adapted))
    assert after < before, f"adapt takes the training loss from {before:.4g} to {after:.4g}"


def _check_evaluate(case: _Case) -> None:
    values = case.method.evaluate(case.params, case.batch, case.hparams)
    assert values.shape == (TASKS,), f"evaluate gives the shape {tuple(values.shape)}, not [tasks]"
    for task in range(TASKS):
        alone = case.method.evaluate(case.params, _pick(case.batch, [task]), case.hparams)
        message = f"the evaluation of task {task} depends on the others"
        check_close(values[[task]], alone, SAME, message)


def _check_refusals(case: _Case) -> None:
    batch = case.batch
    wrong: Any
    for wrong in (list(batch), batch.train[0], (*batch, batch.train)):
        try:
            case(wrong)
        except InputError:
            continue
        raise AssertionError(f"a task batch that is no pair ({type(wrong).__name__}) was taken")
    inputs, targets = batch.train
    targets = targets.clone()
    targets[1, 0] = torch.nan
    try:
        case(TaskBatch((inputs, targets), batch.validation))
    except DivergenceError:
        return
    raise AssertionError("a task with NaN in its training batch does not raise DivergenceError")
