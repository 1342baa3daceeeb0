"""Options of update rules: one value for all, or one per group or parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from odeopt.errors import InputError
from odeopt.tools import tree
from odeopt.tools.arguments import check_selector, select
from odeopt.tools.types import PyTree

Option = Any
"""A number; a selector, e.g. `lambda hparams: hparams["decay"]`; or a tree of numbers or selected
tensors that follows the params from the top and may stop early: {"body": 0.1, "head": 0.0} gives a
value per group, a tensor of a parameter's shape a value per entry."""


def check_option(
    value: Option, what: str, at_least: float = 0.0, below: float = float("inf")
) -> Option:
    """The option, if its numbers are in [at_least, below).

    Raises:
        InputError: if one is not, or is not a number.
        CapturedTensorError: if it is a tensor that requires grad.
    """
    if isinstance(value, Mapping | list | tuple):
        for part in tree.leaves(value):
            check_option(part, what, at_least, below)
        return value
    check_selector(value, what)
    if isinstance(value, bool) or (
        isinstance(value, int | float) and not at_least <= value < below
    ):
        raise InputError(f"{what} is {value!r}; expected a number in [{at_least:g}, {below:g}).")
    return value


def resolve(option: Option, hparams: PyTree, params: PyTree, what: str) -> list[Any]:
    """The option's value for each leaf of the params: a number, or a tensor that broadcasts."""
    found: list[Any] = []
    _spread(option, params, hparams, what, found)
    return found


def _spread(value: Any, params: PyTree, hparams: PyTree, what: str, found: list[Any]) -> None:
    if callable(value):
        value = select(value, hparams, what)
    if isinstance(value, Mapping | list | tuple):
        for part, child in _children(cast("Any", value), params, what):
            _spread(part, child, hparams, what, found)
        return
    for leaf in tree.leaves(params):
        found.append(_check_fits(value, leaf, what))


def _children(value: Any, params: PyTree, what: str) -> list[tuple[Any, PyTree]]:
    if isinstance(value, Mapping) and isinstance(params, Mapping) and set(value) == set(params):
        return [(value[name], params[name]) for name in params]
    if (
        not isinstance(value, Mapping)
        and isinstance(params, list | tuple)
        and len(value) == len(cast("Any", params))
    ):
        return list(zip(value, cast("Any", params), strict=True))
    shown = sorted(map(str, value)) if isinstance(value, Mapping) else f"{len(value)} entries"
    raise InputError(
        f"{what} has the parts {shown}, which are not those of the params; expected a number, or a"
        " tree that follows the params from the top."
    )


def _check_fits(value: Any, leaf: Tensor, what: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    try:
        fits = torch.broadcast_shapes(value.shape, leaf.shape) == leaf.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"{what} has shape {tuple(value.shape)} for a parameter of shape {tuple(leaf.shape)};"
            " expected a shape that broadcasts to it."
        )
    return value.to(leaf.dtype)


def add_scaled(x: Tensor, y: Tensor, scale: float | Tensor) -> Tensor:
    """X + scale * y, rounded for a number as `torch.add(x, y, alpha=scale)` does."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, y, scale)
    return x if scale == 0 else torch.add(x, y, alpha=scale)


def add_square(x: Tensor, g: Tensor, scale: float | Tensor) -> Tensor:
    """X + scale * g * g, rounded for a number as `torch.addcmul(x, g, g, value=scale)` does."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, scale * g, g)
    return torch.addcmul(x, g, g, value=scale)
