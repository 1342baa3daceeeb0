"""What a `torch.optim` instance remembers, as the slots of a rule and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from odeopt.bilevel.torch_optim import translation_of
from odeopt.errors import InputError
from odeopt.types import PyTree


class Taken(NamedTuple):
    """The state of an optimiser that has made steps before.

    Attributes:
        slots: the rule's slots, each a dictionary by parameter; None for those of a fresh start.
        steps: how many steps it counts for.
    """

    slots: PyTree
    steps: int


def take_over(
    optimizer: Optimizer, names: tuple[str, ...], parameters: Mapping[str, Tensor]
) -> Taken:
    """Copies of what the optimiser remembers of some parameters.

    Args:
        optimizer: the optimiser.
        names: the slots of the rule it was translated to.
        parameters: the module's own, by name.

    Raises:
        InputError: if it has moved some of the parameters more often than others.
    """
    kind = translation_of(optimizer)
    theirs = {name: kind.slots[name] for name in names}
    states = {name: _state(optimizer, p, theirs) for name, p in parameters.items()}
    if all(state is None for state in states.values()):
        return Taken(None, 0)
    counts = {name: 0 if s is None else kind.count(s) for name, s in states.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"the optimizer has moved its parameters by different numbers of steps, {counts}, and"
            " cannot be taken over: make a new one, or give each set of parameters its own."
        )
    slots = {
        ours: {name: (s or {})[own].detach().clone() for name, s in states.items()}
        for ours, own in theirs.items()
    }
    return Taken(slots, next(iter(counts.values())))


def _state(optimizer: Optimizer, parameter: Tensor, slots: dict[str, str]) -> dict[str, Any] | None:
    """A parameter's state; None where there is none that has an effect."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    if not slots or any(state.get(name) is None for name in slots.values()):
        return None
    return state


def write_state(
    optimizer: Optimizer, parameters: Mapping[str, Tensor], slots: PyTree, steps: int
) -> None:
    """Give an optimiser the slots of a rule that has made so many steps in all."""
    kind = translation_of(optimizer)
    for name, parameter in parameters.items():
        state: Any = optimizer.state[parameter]
        for ours, values in slots.items():
            state[kind.slots[ours]] = values[name].detach().clone()
        if type(optimizer) is not torch.optim.SGD:
            state["step"] = torch.tensor(float(steps), dtype=torch.get_default_dtype())
