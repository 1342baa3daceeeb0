"""What a recorded loop returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor
from typing_extensions import override

from odeopt.engine.stats import Stats, cost
from odeopt.gradient.result import value_and_norms
from odeopt.tools import tree
from odeopt.tools.shown import Shown, norm
from odeopt.tools.types import PyTree


@dataclass(frozen=True, eq=False)
class LoopGrads(Shown):
    """Gradients of an outer loss through a recorded loop.

    Attributes:
        params: w.r.t. the module's parameters before the loop, by name; those that the optimiser
            does not move included.
        hparams: like hparams; None for leaves that are not floating-point tensors.
        lr: w.r.t. the learning rates, shape [steps, groups], on the CPU.
        batch: w.r.t. the tensors in batches that require grad, in the order of their appearance.
        options: w.r.t. options of the optimiser that are tensors which require grad, likewise.
    """

    params: dict[str, Tensor]
    hparams: PyTree
    lr: Tensor
    batch: tuple[Tensor, ...]
    options: tuple[Tensor, ...]

    @override
    def _shown(self) -> Iterator[str]:
        for part in fields(self):
            yield from norm(part.name, tree.tensors(getattr(self, part.name)))


@dataclass(frozen=True, eq=False)
class LoopResult(Shown):
    """The outer loss after a recorded loop, its gradients, and what they cost.

    With `many=True` value and gradients have a first dimension of losses.

    Attributes:
        value: the outer loss, 0-dim.
        grads: its gradients.
        stats: what the backward sweep cost, steps that were made again included.
    """

    value: Tensor
    grads: LoopGrads
    stats: Stats

    @override
    def _shown(self) -> Iterator[str]:
        yield from value_and_norms(self.value, self.grads, ("params", "hparams", "lr"))
        yield from cost(self.stats)
