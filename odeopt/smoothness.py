"""Which operations of a loss have a kink, where the flow's velocity jumps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

KINKED = {
    "relu": "ReLU", "relu_": "ReLU", "threshold": "threshold", "leaky_relu": "leaky ReLU",
    "leaky_relu_": "leaky ReLU", "_prelu_kernel": "PReLU", "rrelu_with_noise": "RReLU",
    "hardtanh": "hardtanh or ReLU6", "hardtanh_": "hardtanh or ReLU6", "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish", "hardshrink": "hardshrink", "softshrink": "softshrink", "abs": "abs",
    "max_pool2d_with_indices": "max pooling", "max_pool3d_with_indices": "max pooling",
    "max_pool2d": "max pooling", "adaptive_max_pool2d": "max pooling",
}  # fmt: skip
"""Operations of ATen whose first derivative jumps, and what they are called. Not among them are
clamp and max, with which logarithms and softmax are kept finite."""


class KinkWatch(TorchDispatchMode):
    """Notes the kinked operations that are carried out inside it.

    Attributes:
        found: what they are called, in the order in which they were met.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = KINKED.get(func.overloadpacket.__name__)
        if name is not None and _moves(args):
            self.found[name] = None
        return func(*args, **(kwargs or {}))


def _moves(args: tuple[Any, ...]) -> bool:
    """Whether the first argument is a floating-point tensor."""
    return bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
