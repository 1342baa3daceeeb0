"""Gradients and vector-Jacobian products, by plain autograd wherever that can record them.

`torch.func` wraps each tensor for each operation, which costs as much as the operations of a small
model themselves. It is needed inside its own transforms (`vmap` over tasks, or one around a solve),
while a graph is traced, and in inference mode. Both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from odeopt.tools import tree
from odeopt.tools.transforms import inside_transform, is_transforming
from odeopt.tools.types import PyTree

_transforms_only: ContextVar[bool] = ContextVar("_transforms_only", default=False)


@contextmanager
def transforms_only() -> Generator[None]:
    """A block in which `torch.func` is used, whose levels tell what a loss has captured."""
    token = _transforms_only.set(True)
    try:
        yield
    finally:
        _transforms_only.reset(token)


_noted: ContextVar[list[Tensor] | None] = ContextVar("_noted", default=None)


@contextmanager
def noting_inputs() -> Generator[list[Tensor]]:
    """Collect what is differentiated at inside the block, by plain autograd."""
    inputs: list[Tensor] = []
    token = _noted.set(inputs)
    try:
        yield inputs
    finally:
        _noted.reset(token)


def depends_on_others(values: Iterable[Tensor], inputs: Iterable[Tensor]) -> bool:
    """Whether values depend on tensors that require grad and are not among the inputs.

    It looks at the leaves of their graph.
    """
    own = {id(leaf) for leaf in inputs}
    waiting: list[Any] = [value.grad_fn for value in values if value.grad_fn is not None]
    if any(value.requires_grad and value.grad_fn is None and id(value) not in own
           for value in values):  # fmt: skip
        return True
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own:
            return True
        waiting.extend(before for before, _ in node.next_functions)
    return False


def gradient(fn: Callable[[PyTree], Any], at: PyTree, has_aux: bool = False) -> Any:
    """The gradient of a scalar function of a tree; with `has_aux` of its first result.

    It can be differentiated where gradients are enabled. Cost: one gradient.

    Args:
        fn: a function of the tree alone; whatever else it uses is taken for constant.
        at: a tree of floating-point tensors.
        has_aux: whether fn returns (scalar, anything).

    Returns:
        a tree like `at`; with `has_aux`, the pair of this and the second result.
    """
    leaves = tree.leaves(at)
    differentiable = torch.is_grad_enabled()
    alone = differentiable and not any(leaf.requires_grad for leaf in leaves)
    if alone or not can_record(leaves):  # alone, its graph would hold what nobody differentiates
        return torch.func.grad(fn, has_aux=has_aux)(at)
    with torch.enable_grad():
        inputs = _note([_input(leaf, differentiable) for leaf in leaves])
        result = fn(tree.with_leaves(at, inputs))
        value, aux = result if has_aux else (result, None)
        grads = _pull(value, inputs, None, create_graph=differentiable)
    slope = tree.with_leaves(at, grads)
    return (slope, aux) if has_aux else slope


def vjp(fn: Callable[..., Tensor], *at: PyTree) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The value of a function, and its vector-Jacobian product, as often as it is asked for.

    Args:
        fn: a function of trees of floating-point tensors that returns a tensor.
        at: these trees.

    Returns:
        the value, and a function from a cotangent to a tuple of trees like `at`.
    """
    leaves = tree.leaves(at)
    if not can_record(leaves):
        linearized: Any = torch.func.vjp(fn, *at)
        return linearized[0], linearized[1]
    with torch.enable_grad():
        inputs = _note([_input(leaf, differentiable=False) for leaf in leaves])
        value = fn(*tree.with_leaves(at, inputs))

    def pullback(cotangent: Tensor) -> Any:
        grads = _pull(value, inputs, cotangent, retain_graph=True)
        return tree.with_leaves(at, grads)

    return value.detach(), pullback


def points(at: PyTree) -> PyTree:
    """A tree of tensors as leaves at which plain autograd differentiates."""
    return tree.map_tensors(lambda leaf: _input(leaf, differentiable=False), at)


def pull(value: Tensor, at: PyTree, cotangent: Tensor, retain_graph: bool = False) -> PyTree:
    """The vector-Jacobian product at such leaves; zeros for those on which nothing depends.

    With `retain_graph` it can be asked for again; else the graph is freed on the way.
    """
    grads = _pull(value, tree.leaves(at), cotangent, retain_graph=retain_graph)
    return tree.with_leaves(at, grads)


def can_record(leaves: Sequence[Tensor]) -> bool:
    """Whether plain autograd can record what is done with these tensors."""
    return not (
        _transforms_only.get()
        or is_transforming()
        or torch.is_inference_mode_enabled()
        or get_proxy_mode() is not None
        or inside_transform(leaves)
        or any(leaf.is_inference() for leaf in leaves)
    )


def _input(leaf: Tensor, differentiable: bool) -> Tensor:
    """A tensor to differentiate at, on which nothing else that is captured depends."""
    if differentiable and leaf.requires_grad:
        return leaf.view_as(leaf)
    return leaf.detach().requires_grad_()


def _note(inputs: list[Tensor]) -> list[Tensor]:
    noted = _noted.get()
    if noted is not None:
        noted += inputs
    return inputs


def _pull(
    value: Tensor, inputs: list[Tensor], cotangent: Tensor | None, **how: bool
) -> tuple[Tensor, ...]:
    """The gradients w.r.t. inputs; zeros for those on which the value does not depend."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in inputs)
    return torch.autograd.grad(
        value, inputs, cotangent, allow_unused=True, materialize_grads=True, **how
    )
