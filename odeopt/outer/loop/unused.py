"""Parameters that a loss does not depend on, which torch leaves alone and a recorded loop moves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import cast, final

import torch
from torch import Tensor

from odeopt.errors import OdeoptWarning

Evaluate = Callable[[Mapping[str, Tensor]], Tensor]
"""A loss, with a graph, at some parameters."""


@final
class UnusedParameters:
    """Looks for parameters that steps move although their loss does not depend on them."""

    def __init__(self) -> None:
        self._known: dict[object, list[str]] = {}
        self._warned = False

    def check(
        self, loss: object, evaluate: Evaluate, before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        """Warn, once, if the step from `before` to `after` has done so.

        A loss is evaluated when it first comes, and before it is warned of: functions of one code
        may use other parameters.
        """
        if self._warned:
            return
        code = getattr(loss, "__code__", type(loss))
        if code not in self._known:
            self._known[code] = _unused(evaluate, before)
        if _moved(self._known[code], before, after):
            self._known[code] = _unused(evaluate, before)
            self._warn(_moved(self._known[code], before, after))

    def _warn(self, names: list[str]) -> None:
        if names:
            self._warned = True
            warnings.warn(
                f"the loss does not depend on {', '.join(names)}, which weight decay or momentum"
                " moves nevertheless: torch.optim leaves alone what has no gradient, but in a"
                " recorded loop it has a gradient of zero. Leave such parameters out of the"
                " optimizer, or put them into a group without weight_decay.",
                OdeoptWarning,
                stacklevel=6,
            )


def _unused(evaluate: Evaluate, params: Mapping[str, Tensor]) -> list[str]:
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
    found = torch.autograd.grad(evaluate(leaves), list(leaves.values()), allow_unused=True)
    found = cast("tuple[Tensor | None, ...]", found)
    return [name for name, gradient in zip(leaves, found, strict=True) if gradient is None]


def _moved(
    names: Iterable[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> list[str]:
    return [name for name in names if not torch.equal(before[name], after[name])]
