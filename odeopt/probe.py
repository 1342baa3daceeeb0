"""One trial evaluation that finds mistakes which would otherwise give silent wrong gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from odeopt import tree
from odeopt.errors import CapturedTensorError, NondeterminismError
from odeopt.field.base import Field
from odeopt.kernels import BoundField
from odeopt.problem import Problem
from odeopt.theta import Data, Theta
from odeopt.tracking import any_requires_grad, requires_grad
from odeopt.types import PyTree


def probe(field: Field, problem: Problem) -> None:
    """Evaluate the field twice, for the first task, with every input detached.

    Costs two gradient evaluations of one task; none when there is no step to make.

    Raises:
        CapturedTensorError: if a result requires grad nevertheless.
        NondeterminismError: if it drew random numbers, or the two results differ.
        InputError: if the velocity has another structure, shape or dtype than the state.
    """
    if problem.grid.steps == 0:
        return
    flat = BoundField(field, problem.layout)
    inputs = _first_task(problem)
    before = _random_states(problem.y0)
    with torch.enable_grad():
        slope = flat.velocity(*inputs)
    if requires_grad(slope):
        raise CapturedTensorError(_CAPTURED.format(what="the loss (or velocity)"))
    drew = any(
        not torch.equal(a, b) for a, b in zip(before, _random_states(problem.y0), strict=True)
    )
    if drew or _differ(slope, flat.velocity(*inputs)):
        raise NondeterminismError(
            "the loss (or velocity) drew random numbers, or gave two results for the same"
            " arguments. Replayed steps and Hessian-vector products would see other numbers: call"
            " module.eval() to switch dropout off, or draw the numbers beforehand and pass them in"
            " the batch."
        )


def probe_init(field: Field, params: PyTree, hparams: PyTree) -> None:
    """Evaluate `field.init` with every input detached.

    Raises:
        CapturedTensorError: if a result requires grad nevertheless.
    """
    detached = [tree.map_tensors(Tensor.detach, value) for value in (params, hparams)]
    with torch.enable_grad():
        found = field.init(*detached)
    if any_requires_grad(found):
        raise CapturedTensorError(_CAPTURED.format(what="the initial state or the centre"))


_CAPTURED = (
    "{what} uses a tensor that requires grad and is not one of its arguments: its gradient would"
    " be lost. Pass it in hparams, or detach it (for a module, odeopt.from_module passes every"
    " parameter)."
)


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two results differ by more than rounding (some CUDA kernels round at random)."""
    try:
        tolerance = torch.finfo(first.dtype).eps ** 0.5
        return not torch.allclose(first, second, rtol=tolerance, atol=tolerance, equal_nan=True)
    except RuntimeError:  # inside torch.func.vmap values are hidden
        return False


def _first_task(problem: Problem) -> tuple[Tensor, Tensor, Theta, Data]:
    problem = problem.detach()
    start, theta, data, y = problem.grid.times[..., 0], problem.theta, problem.data, problem.y0
    if problem.tasks is not None:
        start, y = start[0], y[0]
        theta = theta._replace(batch=tuple(leaf[0] for leaf in theta.batch))
        data = data._replace(batch=tuple(leaf[0] for leaf in data.batch))
    return start.to(y.dtype), y, theta, data


def _random_states(like: Tensor) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if like.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(like.device))
    return states
