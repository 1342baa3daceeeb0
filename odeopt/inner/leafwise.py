"""Rules that treat each parameter by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.inner.options import Option, resolve
from odeopt.inner.rule import GradientRule
from odeopt.tools import tree
from odeopt.tools.types import PyTree

Leaves = dict[str, Tensor]
"""The slots of one parameter by name."""


class LeafwiseRule(GradientRule):
    r"""A gradient rule given by what it does to one parameter tensor: $(u, s) \to A(g, u, s)$.

    A subclass names its slots and options and writes `step`. Slots have the shape of the
    parameter. Args, costs and errors are those of `GradientRule`.
    """

    slot_names: tuple[str, ...] = ()
    """Slots of the parameter's shape, zero at first."""

    def options(self) -> dict[str, Option]:
        """Its options by name, as they were given."""
        return {}

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
        leaves, spec = tree.pytree.tree_flatten(params)
        options = {
            name: resolve(option, hparams, params, name) for name, option in self.options().items()
        }
        own = {name: tree.leaves(slots[name]) for name in self.slot_names}
        after: list[Tensor] = []
        kept: dict[str, list[Tensor]] = {name: [] for name in self.slot_names}
        for i, (g, u) in enumerate(zip(tree.leaves(grads), leaves, strict=True)):
            mine = {name: values[i] for name, values in own.items()}
            chosen = {name: values[i] for name, values in options.items()}
            u, mine = self.step(k, lr, g, u, mine, chosen)  # noqa: PLW2901
            after.append(u)
            for name in self.slot_names:
                kept[name].append(mine[name])
        rebuilt = {name: tree.pytree.tree_unflatten(kept[name], spec) for name in self.slot_names}
        return tree.pytree.tree_unflatten(after, spec), rebuilt
