"""The parameters of an optimiser's group as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor


@final
class Groups:
    """Parameters by name, and the same joined into one vector per group.

    Rules work entry by entry, so that they may work on few long vectors instead of many tensors,
    which takes a fraction of the time in small models.

    Args:
        names: the names of the parameters in each group; a group may be empty.
        params: the parameters by name.
    """

    def __init__(self, names: Sequence[Sequence[str]], params: Mapping[str, Tensor]) -> None:
        self._names = {str(index): list(own) for index, own in enumerate(names) if own}
        self._shapes = {name: leaf.shape for name, leaf in params.items()}

    @property
    def keys(self) -> list[str]:
        """What joined groups are called: their numbers, without the empty ones."""
        return list(self._names)

    def join(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One vector per group."""
        return {
            key: torch.cat([values[name].reshape(-1) for name in own])
            for key, own in self._names.items()
        }

    def split(self, joined: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `join`, in the order of the parameters."""
        found: dict[str, Tensor] = {}
        for key, own in self._names.items():
            sizes = [self._shapes[name].numel() for name in own]
            found.update(zip(own, joined[key].split(sizes), strict=True))
        return {name: found[name].reshape(shape) for name, shape in self._shapes.items()}
