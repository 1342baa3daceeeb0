"""Copies of modules that keep what they have computed."""

from __future__ import annotations

import copy

from torch import nn

from odeopt.tools import tree


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy, without the history of tensors that the module keeps beside its parameters.

    Such as a weight that is computed from others before each forward pass, or the last output.
    Torch refuses to copy them as they are.
    """
    kept = tree.tensors([list(vars(child).values()) for child in module.modules()])
    return copy.deepcopy(module, {id(x): x.detach().clone() for x in kept if not x.is_leaf})
