"""Whether a tensor is being differentiated, through every level of `torch.func` transforms.

Inside `torch.func.vmap` a tensor says `requires_grad = False` even where a gradient transform
around it is watching, so that the wrappers must be taken off one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from odeopt.errors import SecondOrderError
from odeopt.tools import tree
from odeopt.tools.types import PyTree

_functorch: Any = torch._C._functorch  # noqa: SLF001  # pyright: ignore


def requires_grad(leaf: object) -> bool:
    """Whether a leaf is a floating-point tensor that some level differentiates."""
    if not tree.is_differentiable(leaf):
        return False
    return any(level.requires_grad for level in _levels(leaf))


def any_requires_grad(value: PyTree) -> bool:
    """Whether any tensor leaf is differentiated at some level."""
    return any(requires_grad(leaf) for leaf in tree.tensors(value))


def captures(value: PyTree) -> bool:
    """Whether what a loss returned, inside our gradient of it, depends on something captured.

    Its inputs have no history outside the gradient. So whatever is differentiated at a level
    below the gradient's own came in by another way.
    """
    for leaf in tree.tensors(value):
        levels = list(_levels(leaf))
        own = _functorch.is_gradtrackingtensor(leaf)
        if any(level.requires_grad for level in (levels[1:] if own else levels)):
            return True
    return False


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each tensor has been changed in place; 0 where torch does not count."""
    return [0 if leaf.is_inference() else leaf._version for leaf in tensors]  # noqa: SLF001


def inside_gradient_transform(value: PyTree) -> bool:
    """Whether a `torch.func` gradient transform is watching any tensor leaf."""
    return any(
        _functorch.is_gradtrackingtensor(level) and level.requires_grad
        for leaf in tree.tensors(value)
        for level in _levels(leaf)
    )


def check_not_in_forward_mode(value: PyTree, what: str) -> None:
    """Raise `SecondOrderError` if forward-mode derivatives are taken, which would be zero."""
    levels = (level for leaf in tree.tensors(value) for level in _levels(leaf))
    if any(forward_ad.unpack_dual(level).tangent is not None for level in levels):
        raise SecondOrderError(
            f"{what} was called with tangents (torch.func.jvp, jacfwd or forward_ad): its"
            " derivatives are those of reverse mode. Use torch.func.vjp, jacrev or autograd around"
            " opt.solve(...); a directional derivative is the inner product with the gradient."
        )


def is_transforming() -> bool:
    """Whether a `torch.func` transform is active."""
    return _functorch.peek_interpreter_stack() is not None


def inside_transform(tensors: Sequence[Tensor]) -> bool:
    """Whether any tensor belongs to a `torch.func` transform such as vmap."""
    return any(_functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def _levels(leaf: Any) -> Iterator[Tensor]:
    yield leaf
    while _functorch.is_functorch_wrapped_tensor(leaf):
        leaf = _functorch.get_unwrapped(leaf)
        yield leaf
