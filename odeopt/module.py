"""Modules as losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odeopt.calls import check_scalar
from odeopt.errors import InputError
from odeopt.types import PyTree

Objective = Callable[[Callable[..., Any], PyTree], Tensor]
"""`objective(model, batch) -> scalar`, where `model` is called like the module."""


@dataclass(frozen=True)
class ModuleLoss:
    """A module taken apart: what the inner loop moves, what it does not, and the loss of both.

    Attributes:
        params: adapted parameters by name, detached copies of the module's own.
        hparams: the other parameters by name, or None if all are adapted. Pass it on as hparams,
            so that the frozen parameters can be meta-learned.
        loss: `loss(params, batch)`, or `loss(params, batch, hparams)` if hparams is not None.
    """

    params: dict[str, Tensor]
    hparams: dict[str, Tensor] | None
    loss: Callable[..., Tensor]


def from_module(
    module: nn.Module, objective: Objective, adapt: Callable[[str], bool] = lambda name: True
) -> ModuleLoss:
    """Take a module apart for an inner optimisation; the module itself is not changed.

    Example:
        >>> import torch, odeopt
        >>> model = torch.nn.Linear(3, 1)
        >>> mse = lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean()
        >>> problem = odeopt.from_module(model, mse, adapt=lambda name: name == "weight")
        >>> sorted(problem.params), sorted(problem.hparams)
        (['weight'], ['bias'])

    Args:
        module: any module whose forward pass is deterministic and changes no buffer.
        objective: `objective(model, batch)`, a scalar tensor; it calls `model` like the module.
        adapt: which parameters the inner loop moves, by name; all by default.

    Raises:
        InputError: if the module updates running statistics or drops units at random, or if no
            parameter is adapted.
    """
    _check_pure(module)
    copies = {name: p.detach().clone() for name, p in module.named_parameters()}
    params = {name: p for name, p in copies.items() if adapt(name)}
    frozen = {name: p for name, p in copies.items() if name not in params}
    if not params:
        raise InputError(
            f"adapt chose none of the parameters {sorted(copies)}: choose at least one."
        )
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

    def loss(params: dict[str, Tensor], batch: PyTree, hparams: Any = None) -> Tensor:
        before = _versions(buffers)
        values = {**buffers, **(hparams or {}), **params}

        def model(*args: Any, **keywords: Any) -> Any:
            return torch.func.functional_call(module, values, args, keywords)

        value = check_scalar(objective(model, batch), "objective")
        _check_unchanged(before, _versions(buffers))
        return value

    return ModuleLoss(params, frozen or None, loss)


def _versions(buffers: dict[str, Tensor]) -> dict[str, int]:
    return {name: buffer._version for name, buffer in buffers.items()}  # noqa: SLF001


def _check_unchanged(before: dict[str, int], after: dict[str, int]) -> None:
    changed = [name for name, version in after.items() if before[name] != version]
    if changed:
        raise InputError(
            f"the forward pass changes the buffers {changed}, which the inner loop cannot replay:"
            " call module.eval(), or take that part out of the module."
        )


def _check_pure(module: nn.Module) -> None:
    for name, child in module.named_modules():
        where = f"{type(child).__name__} {name!r}" if name else type(child).__name__
        if child.training and getattr(child, "track_running_stats", False):
            raise InputError(
                f"{where} updates running statistics in its forward pass, which the inner loop"
                " cannot replay. Call module.eval() to use them as they are, make it with"
                " track_running_stats=False to normalise by the batch, or use GroupNorm."
            )
        if child.training and _drops(child):
            raise InputError(
                f"{where} drops units at random, so that replayed steps would differ. Call"
                " module.eval() or set its probability to 0."
            )


def _drops(child: nn.Module) -> bool:
    if isinstance(child, nn.modules.dropout._DropoutNd):  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        return child.p > 0
    if isinstance(child, nn.MultiheadAttention | nn.RNNBase):
        return child.dropout > 0
    return False
