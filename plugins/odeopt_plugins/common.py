"""What several methods share: their common settings, and how an inner loop is put together."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

import odeopt
from odeopt.errors import AllFailed
from odeopt.gradient.value_and_grad import OnFailure
from odeopt.tools.keywords import Keywords, keywords_of

Loss = Callable[..., Any]
"""`loss(params, batch)`, or `loss(params, batch, hparams)` where hparams is not None."""

P = ParamSpec("P")
R = TypeVar("R")


class Settings(TypedDict, total=False):
    """Settings that every method takes.

    Keys:
        compile: None or a compile backend (see `ODEOptimizer`).
        on_failure: "raise", or "skip" to leave failed tasks out of the means and report them.
        safety: limits beyond which a gradient is refused.
        horizon: a `TaskHorizon` to stop each task where its validation loss is least.
    """

    compile: str | None
    on_failure: OnFailure
    safety: odeopt.Safety | None
    horizon: odeopt.TaskHorizon | None


def known_settings(method: Callable[P, R]) -> Callable[P, R]:
    """A decorator of a method's factory or `__init__`: it takes its own keywords and `Settings`.

    Raises:
        UnknownKeywordError: in the call, if there is any other.
    """
    taken = Keywords((*keywords_of(method).names, *Settings.__annotations__), open=False)
    owner = method.__qualname__.removesuffix(".__init__")

    @wraps(method)
    def checked(*args: P.args, **keywords: P.kwargs) -> R:
        taken.check(owner, keywords)
        return method(*args, **keywords)

    return checked


@known_settings
def inner_loop(
    field: odeopt.Field,
    solver: Any,
    adjoint: Any,
    checkpoints: Any,
    grid: odeopt.TimeGrid,
    outer_loss: Loss,
    **settings: Unpack[Settings],
) -> odeopt.InnerLoop:
    """A method that is one `ODEOptimizer`."""
    opt = odeopt.ODEOptimizer(
        field, solver, adjoint, checkpoints, settings.get("safety"), settings.get("compile")
    )
    return odeopt.InnerLoop(
        opt, outer_loss, grid, settings.get("on_failure", "raise"), settings.get("horizon")
    )


def check_values(status: Tensor, values: Tensor, on_failure: OnFailure) -> Tensor:
    """The status, with the tasks whose validation loss is not finite.

    Raises:
        DivergenceError: if a task failed and failures are to be raised, or every task failed.
    """
    lost = (status == odeopt.Status.OK) & ~torch.isfinite(values)
    status = torch.where(lost, int(odeopt.Status.VALUE_NOT_FINITE), status)
    failed: list[int] = (status != odeopt.Status.OK).nonzero().flatten().tolist()
    if failed and (on_failure == "raise" or len(failed) == len(status)):
        error = odeopt.DivergenceError(
            f"task {failed[0]}: the state or the validation loss is not finite (status"
            f" {odeopt.Status(int(status[failed[0]])).name}). Take smaller steps, or look for NaN"
            " in the data."
        )
        if on_failure == "skip":
            error.all_failed = AllFailed(values, status)
        raise error
    return status


def mean_over(status: Tensor, values: Tensor) -> Tensor:
    """The mean over tasks that did not fail, of values [tasks, ...]."""
    ok = (status == odeopt.Status.OK).reshape(-1, *(1,) * (values.ndim - 1))
    return torch.where(ok, values, torch.zeros_like(values)).sum(0) / ok.sum()
