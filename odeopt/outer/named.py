"""What is learned, and the memory of the outer optimiser, by name rather than by place."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, count
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from odeopt.tools import tree
from odeopt.tools.describing import describe_leniently
from odeopt.tools.types import PyTree


def named_leaves(learned: Mapping[str, PyTree]) -> dict[str, Any]:
    """The leaves of all trees by name, e.g. `params['weight']`."""
    return {
        what + path.removeprefix("<root>"): leaf
        for what, own in learned.items()
        for path, leaf in zip(tree.paths(own), tree.leaves(own), strict=True)
    }


def layout(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The dtype and shape of each tensor by name; other leaves as they are."""
    return {
        name: f"{leaf.dtype} {list(leaf.shape)}"
        if isinstance(leaf, Tensor)
        else describe_leniently(leaf)
        for name, leaf in leaves.items()
    }


@final
class NamedOptimizer:
    """An outer optimiser whose memory goes by the names of what it moves.

    Args:
        optimizer: it.
        leaves: what it moves, by name.
    """

    def __init__(self, optimizer: Optimizer, leaves: Mapping[str, Any]) -> None:
        self._optimizer = optimizer
        self._known = {id(leaf): name for name, leaf in leaves.items()}

    def settings(self) -> dict[str, str]:
        """Its class, its options and its groups as text, by name; before its first step."""
        kind = type(self._optimizer)
        pairs = zip(self._names(), self.options(), strict=True)
        groups = [(sorted(names), options) for names, options in pairs]
        options = {
            f"the outer optimizer's {name}": describe_leniently(value)
            for name, value in self._optimizer.defaults.items()
        }
        return {
            "the outer optimizer": f"{kind.__module__}.{kind.__qualname__}",
            **options,
            "the groups of the outer optimizer": describe_leniently(groups),
        }

    def options(self) -> list[dict[str, Any]]:
        """The options of each group, learning rates among them, as they are now."""
        return [_without_params(group) for group in self._optimizer.param_groups]

    def state(self) -> dict[str, Any]:
        """Its memory and the options of the moment."""
        state = self._optimizer.state_dict()
        names = dict(enumerate(chain(*self._names())))
        memory = {names.get(key, key): value for key, value in state["state"].items()}
        groups = [_without_params(group) for group in state["param_groups"]]
        return {**state, "state": memory, "param_groups": groups}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        places = {name: place for place, name in enumerate(chain(*self._names()))}
        memory = {places.get(key, key): value for key, value in state["state"].items()}
        own = self._optimizer.state_dict()["param_groups"]
        groups = [
            {**group, "params": mine["params"]}
            for group, mine in zip(state["param_groups"], own, strict=True)
        ]
        self._optimizer.load_state_dict({**state, "state": memory, "param_groups": groups})

    def _names(self) -> list[list[str]]:
        """The names in each group."""
        places = count()
        return [
            [self._known.get(id(leaf), f"another at {next(places)}") for leaf in group["params"]]
            for group in self._optimizer.param_groups
        ]


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
