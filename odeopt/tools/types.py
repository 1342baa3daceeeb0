"""Aliases shared by every module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

PyTree = Any
"""A nested structure of tuples, lists, dictionaries and named tuples with tensor leaves."""

Tensors = tuple[Tensor, ...]

Loss = Callable[..., Any]
"""`loss(params, batch)` or, exactly when hparams is not None, `loss(params, batch, hparams)`."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""`velocity(t, y) -> dy/dt` on flat states: t is a 0-dim tensor, y has shape [d]."""
