"""The conformance suite of update rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from odeopt.adjoint.discrete import DiscreteAdjoint
from odeopt.checkpoint.binomial import Binomial
from odeopt.grid import TimeGrid
from odeopt.inner.rule import UpdateRule
from odeopt.inner.stream import Stream
from odeopt.optimizer import ODEOptimizer
from odeopt.testing.fields import ROUNDING
from odeopt.testing.problems import (
    CallCounter,
    SmoothProblem,
    check_close,
    number,
    smooth_problem,
    task,
)
from odeopt.tools import tree
from odeopt.tools.types import Loss, PyTree


def check_rule(make: Callable[[Loss], UpdateRule], device: torch.device | None = None) -> None:
    """Check an update rule made from a loss; raises AssertionError with what is wrong.

    Its readout at the start is the parameters, up to rounding; an update keeps the structure of
    the state, evaluates the loss once, is deterministic and works under vmap; the exact adjoint
    agrees with autograd through the unrolled loop to 1e-10, for parameters, hyperparameters and
    learning rates, with every state kept and with three.

    Args:
        make: makes the rule from `loss(params, batch)` or `loss(params, batch, hparams)`.
        device: where to compute.
    """
    problem = smooth_problem(device)
    rule = make(problem.loss)
    state, consts = rule.init(problem.params, problem.hparams)
    readout = rule.readout(state)
    check_close(readout, problem.params, ROUNDING, "readout(init(params)) is not params")
    _check_update(rule, state, consts, problem)
    _check_cost(make, problem)
    _check_gradient(rule, problem)
    _check_tasks(rule, device)


def unroll(
    rule: UpdateRule, params: PyTree, batch: PyTree, lrs: Tensor, hparams: PyTree = None
) -> PyTree:
    """The final parameters by a plain loop that autograd can follow.

    Args:
        rule: the rule.
        params: the initial parameters.
        batch: a batch, or a stream of them.
        lrs: the learning rates, shape [N].
        hparams: as the loss takes them.
    """
    state, consts = rule.init(params, hparams)
    for k, lr in enumerate(lrs):
        now = batch(k) if isinstance(batch, Stream) else batch
        index = torch.tensor(float(k), dtype=lrs.dtype, device=lrs.device)
        state = rule.update(index, lr, state, consts, hparams, now)
    return rule.readout(state)


def _check_update(rule: UpdateRule, state: PyTree, consts: PyTree, problem: SmoothProblem) -> None:
    like = problem.batch[0]
    args = (number(2.0, like), number(0.1, like), state, consts, None, problem.batch)
    layout = tree.layout_of(state)
    first = layout.flatten(rule.update(*args), "the updated state")
    again = layout.flatten(rule.update(*args), "the updated state")
    assert bool(torch.isfinite(first).all()), "the updated state is not finite"
    assert torch.equal(first, again), "the update differs when it is made again"


def _check_cost(make: Callable[[Loss], UpdateRule], problem: SmoothProblem) -> None:
    counted = CallCounter(problem.loss)
    rule, like = make(counted), problem.batch[0]
    state, consts = rule.init(problem.params, None)
    rule.update(number(0.0, like), number(0.1, like), state, consts, None, problem.batch)
    assert counted.calls <= 1, (
        f"an update evaluates the loss {counted.calls} times, but counts as one gradient: take a"
        " value and its gradient together (torch.func.grad_and_value), or make what needs several"
        " gradients a solver with as many stages"
    )


def _check_gradient(rule: UpdateRule, problem: SmoothProblem) -> None:
    lrs = torch.linspace(0.1, 0.02, 7).to(problem.batch[0])
    loss = problem.loss
    for hparams in (None, problem.hparams):
        leaves: Any = tree.map_tensors(
            lambda x: x.detach().clone().requires_grad_(), (problem.params, hparams, lrs)
        )
        params, own, rates = leaves
        final = unroll(rule, params, problem.batch, rates, own)
        extra = () if hparams is None else (own,)
        value = cast("Tensor", loss(final, problem.outer_batch, *extra))
        expected = list(torch.autograd.grad(value, tree.tensors(leaves)))
        for checkpoints in (None, Binomial(3)):
            opt = ODEOptimizer(rule, adjoint=DiscreteAdjoint(), checkpoints=checkpoints)
            grads = opt.value_and_grad(loss)(
                problem.params, problem.batch, TimeGrid.from_lr(lrs), problem.outer_batch, hparams
            ).grads
            found = [*tree.tensors((grads.params, grads.hparams)), grads.dt]
            check_close(found, expected, 1e-10, "the gradient is not that of the loop")


def _check_tasks(rule: UpdateRule, device: torch.device | None) -> None:
    problem = smooth_problem(device, tasks=3)
    grid, opt = TimeGrid.from_lr(0.05, 4), ODEOptimizer(rule)
    together = opt.solve(problem.params, problem.batch, grid, tasks=True).params
    for index in range(3):
        alone = opt.solve(problem.params, task(problem.batch, index), grid).params
        mine = task(together, index)
        check_close(mine, alone, 1e-12, f"vmap changes the updates of task {index}")
