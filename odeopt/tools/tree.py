"""Pytrees: the only module that knows how nested structures are flattened."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import islice
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from odeopt.errors import InputError
from odeopt.tools.types import PyTree, Tensors


def leaves(tree: PyTree) -> list[Any]:
    """The leaves of a tree, in a fixed order."""
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: PyTree, found: list[Any]) -> None:
    """Append the leaves of a tree; the kinds of nodes that are met in every step are known here."""
    kind = type(tree)
    if isinstance(tree, Tensor):
        found.append(tree)
    elif kind is tuple or kind is list or (kind.__bases__ == (tuple,) and _is_named(kind)):
        for child in tree:
            _collect(child, found)
    elif kind is dict:
        for child in tree.values():
            _collect(child, found)
    else:
        found.extend(pytree.tree_leaves(tree))


def _is_named(kind: type) -> bool:
    """Whether it is the class of a named tuple, and no node of its own."""
    return hasattr(kind, "_fields") and kind not in pytree.SUPPORTED_NODES


def structure(tree: PyTree) -> Any:
    """The spec of a tree."""
    return pytree.tree_structure(tree)


def tensors(tree: PyTree) -> list[Tensor]:
    """The tensor leaves of a tree."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(fn: Callable[[Tensor], Any], tree: PyTree) -> PyTree:
    """Apply fn to each tensor leaf and leave the others as they are."""
    return map_leaves(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def map_leaves(fn: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """Apply fn to each leaf; the kinds of nodes that are met in every step are known here."""
    kind = type(tree)
    if isinstance(tree, Tensor):
        return fn(tree)
    if kind is dict:
        return {key: map_leaves(fn, child) for key, child in tree.items()}
    if kind is tuple or kind is list:
        return kind([map_leaves(fn, child) for child in tree])
    if kind.__bases__ == (tuple,) and _is_named(kind):
        return kind._make([map_leaves(fn, child) for child in tree])
    return pytree.tree_map(fn, tree)


def with_leaves(tree: PyTree, leaves: Iterable[Any]) -> PyTree:
    """The tree with other leaves, in the order of `leaves`."""
    following = iter(leaves)
    return map_leaves(lambda leaf: next(following), tree)


def norm(tree: PyTree) -> float:
    """The norm of all tensors of a tree together; 0 if there are none."""
    return math.hypot(*(torch.linalg.vector_norm(leaf).item() for leaf in tensors(tree)))


def zero_unless(ok: Tensor, leaf: Tensor, lead: int = 0) -> Tensor:
    """The leaf, with zeros where `ok` is false.

    Args:
        ok: its shape is that of the leaf's dimensions after the first `lead`.
        leaf: a tensor.
        lead: how many dimensions come before.
    """
    mask = ok.reshape(ok.shape + (1,) * (leaf.ndim - lead - ok.ndim))
    return torch.where(mask, leaf, torch.zeros_like(leaf))


def assembler(spec: Any) -> Callable[[Iterator[Any]], PyTree]:
    """Makes trees of a spec from an iterator over their leaves, fast for the usual containers."""
    if spec.is_leaf():
        return next
    if spec.type is tuple:
        make: Callable[[list[Any]], Any] = tuple
    elif spec.type is list:
        make = list
    elif spec.type is dict:
        make = partial(_dict_of, spec.context)
    elif spec.type is namedtuple:
        make = spec.context._make
    else:
        count = spec.num_leaves
        return lambda leaves: pytree.tree_unflatten([next(leaves) for _ in range(count)], spec)
    parts = [assembler(child) for child in spec.children()]
    if all(part is next for part in parts):  # one call for all of them
        return lambda leaves: make(list(islice(leaves, len(parts))))
    return lambda leaves: make([part(leaves) for part in parts])


def _dict_of(keys: Sequence[Any], values: list[Any]) -> dict[Any, Any]:
    return dict(zip(keys, values, strict=True))


def reader(spec: Any) -> Callable[[PyTree], list[Tensor] | None]:
    """Takes the leaves of trees of a spec, fast where it is of tuples, lists and dictionaries.

    It gives None for every tree in which it does not see that spec with tensors as leaves.
    """
    append = _appender(spec)

    def read(tree: PyTree) -> list[Tensor] | None:
        tensors: list[Tensor] = []
        return tensors if append(tree, tensors) else None

    return read


def _appender(spec: Any) -> Callable[[Any, list[Tensor]], bool]:
    """Appends the leaves of a tree to a list and says whether it is of the spec."""
    if spec.is_leaf():
        return _append_tensor
    named = spec.type is namedtuple
    kind = spec.context if named else spec.type
    parts = [_appender(child) for child in spec.children()]

    def append(tree: Any, tensors: list[Tensor]) -> bool:
        if type(tree) is not kind or len(tree) != len(parts):
            return False
        if kind is dict:
            if list(tree) != spec.context:
                return False
            tree = tree.values()
        return all(part(child, tensors) for part, child in zip(parts, tree, strict=True))

    return append if named or kind in (tuple, list, dict) else lambda tree, tensors: False


def _append_tensor(leaf: Any, tensors: list[Tensor]) -> bool:
    if not isinstance(leaf, Tensor):
        return False
    tensors.append(leaf)
    return True


def paths(tree: PyTree) -> list[str]:
    """A readable path for each leaf, e.g. `['layer']['weight']`.

    Only its place, e.g. `[3]`, where a node in the tree does not name its children.
    """
    try:
        with_paths = cast("list[tuple[Any, Any]]", pytree.tree_flatten_with_path(tree)[0])
    except ValueError:
        return [f"[{place}]" for place in range(len(leaves(tree)))]
    return [pytree.keystr(path) or "<root>" for path, _ in with_paths]


def is_differentiable(leaf: object) -> bool:
    """Whether a leaf is a floating-point tensor."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


class _Value:
    """A value that is copied and described by its fields, whatever it has cached."""

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(cast("Any", self))}


@dataclass(frozen=True)
class Ravel(_Value):
    """How a tree of tensors becomes one vector of length `size`, and back."""

    spec: Any
    shapes: tuple[torch.Size, ...]
    size: int
    dtype: torch.dtype

    def flatten(self, tree: PyTree, what: str) -> Tensor:
        """Concatenate the leaves of `tree` into a vector of shape [size]."""
        parts, spec = self._read(tree), self.spec
        if parts is None:
            parts, spec = pytree.tree_flatten(tree)
        shapes = tuple(getattr(leaf, "shape", None) for leaf in parts)
        if spec != self.spec or shapes != self.shapes:
            raise InputError(
                f"{what} has the structure {spec} with shapes {_show(shapes)}; expected"
                f" {self.spec} with shapes {_show(self.shapes)}."
            )
        wrong = {leaf.dtype for leaf in parts} - {self.dtype}
        if wrong:
            raise InputError(
                f"{what} has the dtype {wrong.pop()}; expected {self.dtype}, that of the params."
            )
        return _concatenate(parts)

    def unflatten(self, flat: Tensor) -> PyTree:
        """Cut a tensor of shape [..., size] into the tree; leading dimensions are kept."""
        sizes = self._sizes
        pieces = flat.split_with_sizes(sizes, dim=-1) if len(sizes) > 1 else (flat,)
        lead = flat.shape[:-1]
        parts = [
            piece.reshape(lead + shape) for piece, shape in zip(pieces, self.shapes, strict=True)
        ]
        return self._assemble(iter(parts))

    @cached_property
    def _sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes]

    @cached_property
    def _assemble(self) -> Callable[[Iterator[Any]], PyTree]:
        return assembler(self.spec)

    @cached_property
    def _read(self) -> Callable[[PyTree], list[Tensor] | None]:
        return reader(self.spec)


def ravel(tree: PyTree, what: str) -> tuple[Tensor, Ravel]:
    """Flatten a tree of floating-point tensors of one dtype and device.

    Raises:
        InputError: if a leaf is not such a tensor; `what` names the tree in the message.
    """
    parts = leaves(tree)
    _check_state_leaves(parts, paths(tree), what)
    return _concatenate(parts), layout_of(tree)


def flat(tree: PyTree) -> Tensor:
    """The tensors of a tree of one dtype as one vector."""
    return _concatenate(tensors(tree))


def layout_of(tree: PyTree) -> Ravel:
    """How a tree of tensors that has been checked becomes one vector."""
    parts, spec = pytree.tree_flatten(tree)
    shapes = tuple(leaf.shape for leaf in parts)
    return Ravel(spec, shapes, sum(shape.numel() for shape in shapes), parts[0].dtype)


@dataclass(frozen=True)
class Partition(_Value):
    """A tree split into differentiable tensors, other tensors and everything else."""

    spec: Any
    roles: tuple[str, ...]
    rest: tuple[Any, ...]

    def split(self, tree: PyTree) -> tuple[Tensors, Tensors]:
        """(differentiable tensors, other tensors) of a tree like the one that was split."""
        by_role: dict[str, list[Any]] = {"diff": [], "data": [], "rest": []}
        for role, leaf in zip(self.roles, leaves(tree), strict=True):
            by_role[role].append(leaf)
        return tuple(by_role["diff"]), tuple(by_role["data"])

    def merge(self, diff: Tensors, data: Tensors) -> PyTree:
        """The tree again, with the given tensors in their places."""
        sources = {"diff": iter(diff), "data": iter(data), "rest": iter(self.rest)}
        return self._assemble(next(sources[role]) for role in self.roles)

    def gradients(self, diff: Sequence[Tensor]) -> PyTree:
        """The tree with gradients for differentiable leaves and None elsewhere."""
        grads = iter(diff)
        return self._assemble(next(grads) if role == "diff" else None for role in self.roles)

    @cached_property
    def _assemble(self) -> Callable[[Iterator[Any]], PyTree]:
        return assembler(self.spec)


def partition(
    tree: PyTree, wanted: Callable[[object], bool] = is_differentiable
) -> tuple[Partition, Tensors, Tensors]:
    """Split a tree into (how to merge it, differentiable tensors, other tensors)."""
    parts, spec = pytree.tree_flatten(tree)
    by_role: dict[str, list[Any]] = {"diff": [], "data": [], "rest": []}
    roles: list[str] = []
    for leaf in parts:
        roles.append("diff" if wanted(leaf) else "data" if isinstance(leaf, Tensor) else "rest")
        by_role[roles[-1]].append(leaf)
    diff, data, rest = map(tuple, by_role.values())
    return Partition(spec, tuple(roles), rest), diff, data


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0].reshape(-1)
    return torch.cat([leaf.reshape(-1) for leaf in tensors])


def _check_state_leaves(leaves: Sequence[Any], names: Sequence[str], what: str) -> None:
    if not leaves:
        raise InputError(f"{what} holds no tensor: pass at least one tensor to optimise.")
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{what}{name} is a {type(leaf).__name__}; expected a torch.Tensor. For a module,"
                " odeopt.from_module(module, objective) returns its parameters and a loss of them;"
                " dict(module.named_parameters()) are the parameters alone."
            )
        if leaf.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"{what}{name} has dtype {leaf.dtype}; expected torch.float32 or torch.float64."
                " Convert it, or pass it in batch or hparams if it is not to be moved."
            )
        if (leaf.dtype, leaf.device) != (leaves[0].dtype, leaves[0].device):
            raise InputError(
                f"{what}{name} is {leaf.dtype} on {leaf.device}, but {what}{names[0]} is"
                f" {leaves[0].dtype} on {leaves[0].device}: use one dtype and one device."
            )
        if leaf.is_meta or leaf.layout is not torch.strided:
            kind = "on the meta device" if leaf.is_meta else f"of layout {leaf.layout}"
            raise InputError(
                f"{what}{name} is {kind}; expected a dense tensor with values: call"
                " module.to_empty(device=...) and initialise it, or tensor.to_dense()."
            )


def _show(shapes: Sequence[object]) -> str:
    return (
        "[" + ", ".join(str(tuple(s)) if isinstance(s, torch.Size) else "?" for s in shapes) + "]"
    )
