"""Gradient transforms: what is done to a gradient before a rule uses it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odeopt.tools import tree
from odeopt.tools.arguments import check_positive_number
from odeopt.tools.types import PyTree

GradientTransform = Callable[[PyTree], PyTree]
"""A pure, differentiable function from a gradient to one of the same structure."""


def clip_by_norm(max_norm: float) -> GradientTransform:
    r"""$g \min(1, c / (\lVert g\rVert + 10^{-6}))$ over all leaves, as torch's `clip_grad_norm_`.

    It is differentiated as it is: where it clips, the gradient's direction counts and its length
    does not.

    Args:
        max_norm: c.

    Raises:
        InputError: if c is not a positive number.

    References:
        Pascanu et al. 2013, "On the difficulty of training recurrent neural networks".
    """
    check_positive_number(max_norm, "max_norm")

    def clip(grads: PyTree) -> PyTree:
        squares = [leaf.square().sum() for leaf in tree.tensors(grads)]
        norm = safe_sqrt(torch.stack(squares).sum())
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        return tree.map_tensors(lambda leaf: leaf * factor, grads)

    return clip


def clip_by_value(max_value: float) -> GradientTransform:
    """Each entry limited to $[-c, c]$, as torch's `clip_grad_value_`; derivative 0 where it clips.

    Args:
        max_value: c.

    Raises:
        InputError: if c is not a positive number.
    """
    check_positive_number(max_value, "max_value")
    return lambda grads: tree.map_tensors(lambda leaf: leaf.clamp(-max_value, max_value), grads)


def safe_sqrt(x: Tensor) -> Tensor:
    """The square root, with derivative 0 (not infinite) at 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), 0.0)
