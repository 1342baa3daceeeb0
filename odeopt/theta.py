"""The inputs of a velocity beside t and y, flat, so that kernels can be batched over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from odeopt.types import Tensors


class Theta(NamedTuple):
    """The differentiable inputs of a velocity beside t and y, as flat tuples of tensors."""

    shared: Tensors
    """From consts and hparams: one for all tasks."""
    batch: Tensors
    """From the batch: one per task."""


class Data(NamedTuple):
    """The inputs that are not differentiated (labels, indices), laid out like `Theta`."""

    shared: Tensors
    batch: Tensors


def scale_theta(theta: Theta, factor: Tensor) -> Theta:
    """A theta times a 0-dim tensor, in the dtypes of its leaves."""
    return Theta(*(tuple(leaf * factor.to(leaf.dtype) for leaf in part) for part in theta))


def add_thetas(thetas: Sequence[Theta]) -> Theta:
    """The sum of thetas of one structure."""
    total = thetas[0]
    for theta in thetas[1:]:
        total = Theta(
            *(
                tuple(x + y for x, y in zip(mine, other, strict=True))
                for mine, other in zip(total, theta, strict=True)
            )
        )
    return total
