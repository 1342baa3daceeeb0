"""What a recorded loop gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odeopt.stats import Stats
from odeopt.types import PyTree


@dataclass(frozen=True, eq=False)
class LoopGrads:
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


@dataclass(frozen=True, eq=False)
class LoopResult:
    """The outer loss after a recorded loop, its gradients, and what they cost.

    The value is 0-dim; `grads` is described in `LoopGrads`, the counts in `Stats`.

    Attributes:
        value: the outer loss, 0-dim.
        grads: its gradients.
        stats: what the backward sweep cost, the second run of the steps included.
    """

    value: Tensor
    grads: LoopGrads
    stats: Stats
