"""One trial evaluation that finds mistakes which would otherwise give silent wrong gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt.errors import CapturedTensorError, NondeterminismError
from odeopt.kernels import BoundField
from odeopt.problem import Problem
from odeopt.theta import Data, Theta


def probe(flat: BoundField, problem: Problem) -> None:
    """Evaluate the field once, for the first task, with every input detached.

    Costs one gradient evaluation; none when there is no step to make.

    Raises:
        CapturedTensorError: if the velocity requires grad nevertheless.
        NondeterminismError: if it drew random numbers.
        InputError: if it has another structure or shape than the state.
    """
    if problem.grid.steps == 0:
        return
    inputs = _first_task(problem)
    before = _random_state(problem.y0)
    with torch.enable_grad():
        slope = flat.velocity(*inputs)
    if slope.requires_grad:
        raise CapturedTensorError(
            "the loss (or velocity) uses a tensor that requires grad and is not one of its"
            " arguments: its gradient would be lost. Pass it in hparams, or detach it (for a"
            " module, odeopt.from_module passes every parameter)."
        )
    if not torch.equal(before, _random_state(problem.y0)):
        raise NondeterminismError(
            "the loss (or velocity) drew random numbers. Replayed steps and Hessian-vector"
            " products would see others: call module.eval() to switch dropout off, or draw the"
            " numbers beforehand and pass them in the batch."
        )


def _first_task(problem: Problem) -> tuple[Tensor, Tensor, Theta, Data]:
    problem = problem.detach()
    start, theta, data, y = problem.grid.times[..., 0], problem.theta, problem.data, problem.y0
    if problem.tasks is not None:
        start, y = start[0], y[0]
        theta = theta._replace(batch=tuple(leaf[0] for leaf in theta.batch))
        data = data._replace(batch=tuple(leaf[0] for leaf in data.batch))
    return start.to(y.dtype), y, theta, data


def _random_state(like: Tensor) -> Tensor:
    if like.device.type == "cuda":
        return torch.cuda.get_rng_state(like.device)
    return torch.get_rng_state()
