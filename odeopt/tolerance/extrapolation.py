"""Two solves put together: what is left of the error when its leading term is taken away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from odeopt.gradient.error_estimate import scaled
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.tolerance.setting import STABILIZED
from odeopt.tools import tree

Tree = TypeVar("Tree")

LEFT = {
    "euler": 0.54,
    "modified-euler": 0.55,
    "chebyshev-2": 0.6,
    "chebyshev-3": 0.2,
    "rk4": 0.4,
    STABILIZED: 0.65,
}
"""The share of the error of the finer solve that is left in most pairs."""

NOISE = 1000.0
"""In units of the rounding error of a number: a difference of two solves below this tells nothing
about their errors."""


def left(method: str, change: float, dtype: torch.dtype) -> float:
    """The share of the error of the finer solve of a pair that extrapolation leaves, at most.

    Args:
        method: of both.
        change: the relative change of the gradient between the two.
        dtype: in which they were solved.
    """
    return LEFT[method] if change > NOISE * torch.finfo(dtype).eps else 1.0


def extrapolate(fine: Result, coarse: Result, ahead: float) -> Result:
    r"""Richardson's extrapolation: $g + (g - g_\text{coarse}) / q$ for value and gradients.

    Args:
        fine: g.
        coarse: the other one, over the same grid and with the same tasks done.
        ahead: q, their difference in units of the error of the finer one.
    """

    def closer(found: Any, other: Any) -> Any:
        return found + (found - other) / ahead if isinstance(found, Tensor) else found

    def every(found: Tree, other: Tree) -> Tree:
        return tree.pytree.tree_map(closer, found, other)

    ours, theirs = fine.grads, coarse.grads
    grads = replace(
        ours,
        params=every(ours.params, theirs.params),
        hparams=every(ours.hparams, theirs.hparams),
        dt=closer(ours.dt, theirs.dt),
        batch=every(ours.batch, theirs.batch),
    )
    value, values = closer(fine.value, coarse.value), closer(fine.values, coarse.values)
    return replace(fine, value=value, values=values, grads=grads)


def shrunk(error: ErrorEstimate, share: float) -> ErrorEstimate:
    """What is said of the error of an extrapolated gradient."""
    doubt = (
        "the gradient is extrapolated from two solves, which in most cases leaves at most"
        f" {share:g} of the error of the finer one"
    )
    return replace(scaled(error, share), doubts=(*error.doubts, doubt))
