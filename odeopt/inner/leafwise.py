"""Rules that treat each parameter by itself, and their options."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.errors import InputError
from odeopt.inner.rule import GradientRule
from odeopt.tools import tree
from odeopt.tools.arguments import check_selector, select
from odeopt.tools.shown import shown
from odeopt.tools.types import PyTree

Option = Any
"""A number; a selector, e.g. `lambda hparams: hparams["decay"]`; or a tree of numbers or selected
tensors that follows the params from the top and may stop early: {"body": 0.1, "head": 0.0} gives a
value per group, a tensor of a parameter's shape a value per entry."""

Leaves = dict[str, Tensor]
"""The slots of one parameter by name."""


class LeafwiseRule(GradientRule):
    r"""A gradient rule given by what it does to one parameter tensor: $(u, s) \to A(g, u, s)$.

    A subclass names its slots and options and writes `step`. Slots have the shape of the
    parameter. Args, costs and errors are those of `GradientRule`.
    """

    slot_names: tuple[str, ...] = ()
    """Slots of the parameter's shape, zero at first."""

    elementwise: bool = False
    """Whether `step` does the same to each entry, without looking at others."""

    def options(self) -> dict[str, Option]:
        """Its options by name, as they were given."""
        return {}

    @override
    def _given(self) -> Mapping[str, Any]:
        return {**super()._given(), **self.options()}

    @property
    @override
    def joins(self) -> bool:
        return self.elementwise and _are_numbers(self.options()) and self._transform is None

    @abstractmethod
    def step(
        self, k: Tensor, lr: Tensor, g: Tensor, u: Tensor, slots: Leaves, options: dict[str, Any]
    ) -> tuple[Tensor, Leaves]:
        """The next parameter and slots; options are numbers or tensors that broadcast to u."""

    @override
    def init_slots(self, params: PyTree) -> PyTree:
        return {name: tree.map_tensors(torch.zeros_like, params) for name in self.slot_names}

    @override
    def apply(
        self, k: Tensor, lr: Tensor, grads: PyTree, params: PyTree, slots: PyTree, hparams: PyTree
    ) -> tuple[PyTree, PyTree]:
        leaves, given = tree.leaves(params), self.options()
        options = [given] * len(leaves)
        if not _are_numbers(given):
            options = _by_leaf(len(leaves), {
                name: for_leaves(option, hparams, params, name) for name, option in given.items()
            })  # fmt: skip
        own = _by_leaf(len(leaves), {name: tree.leaves(slots[name]) for name in self.slot_names})
        each = zip(tree.leaves(grads), leaves, own, options, strict=True)
        moved = [self.step(k, lr, g, u, mine, chosen) for g, u, mine, chosen in each]
        return tree.with_leaves(params, [u for u, _ in moved]), {
            name: tree.with_leaves(params, [after[name] for _, after in moved])
            for name in self.slot_names
        }


def _are_numbers(options: Mapping[str, Option]) -> bool:
    return all(isinstance(option, int | float) for option in options.values())


def _by_leaf(count: int, values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """One dictionary for each of so many leaves, from a list by leaves under each name."""
    return [{name: own[i] for name, own in values.items()} for i in range(count)]


def check_option(value: Option, what: str, below: float = float("inf")) -> None:
    """Refuse an option whose numbers are not in [0, below).

    Raises:
        InputError: if one is not, or is not a number.
        CapturedTensorError: if it is a tensor that requires grad.
    """
    if isinstance(value, Mapping | list | tuple):
        for part in tree.leaves(value):
            check_option(part, what, below)
        return
    check_selector(value, what)
    if isinstance(value, bool) or (isinstance(value, int | float) and not 0 <= value < below):
        raise InputError(f"{what} is {shown(value)}; expected a number in [0, {below:g}).")


def for_leaves(option: Option, hparams: PyTree, params: PyTree, what: str) -> list[Any]:
    """The option's value for each leaf of the params: a number, or a tensor that broadcasts."""
    if isinstance(option, int | float):
        return [option] * len(tree.leaves(params))
    if callable(option):
        option = select(option, hparams, what)
    if isinstance(option, Mapping | list | tuple):
        parts = _children(cast("Any", option), params, what)
        return [x for part, child in parts for x in for_leaves(part, hparams, child, what)]
    return [_check_fits(option, leaf, what) for leaf in tree.leaves(params)]


def _children(value: Any, params: PyTree, what: str) -> list[tuple[Any, PyTree]]:
    if isinstance(value, Mapping) and isinstance(params, Mapping) and set(value) == set(params):
        return [(value[name], params[name]) for name in params]
    if (
        not isinstance(value, Mapping)
        and isinstance(params, list | tuple)
        and len(value) == len(cast("Any", params))
    ):
        return list(zip(value, cast("Any", params), strict=True))
    said = sorted(map(str, value)) if isinstance(value, Mapping) else f"{len(value)} entries"
    raise InputError(
        f"{what} has the parts {said}, which are not those of the params; expected a number, or a"
        " tree that follows the params from the top."
    )


def _check_fits(value: Any, leaf: Tensor, what: str) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 0:
        return value.to(leaf.dtype)
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
