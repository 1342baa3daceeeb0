"""How far a gradient is from that of the flow: Richardson's rule."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from odeopt.engine.backward import Trace
from odeopt.engine.stats import Stats
from odeopt.gradient.coarsening import Coarser, Decay
from odeopt.gradient.result import ErrorEstimate, Result
from odeopt.tools import tree
from odeopt.tools.types import PyTree

LARGEST_DEFECT = 0.1
"""Of an interpolated state, beyond which cubic interpolation is not in its asymptotic range."""

FEWEST_STEPS = 4
"""Of a solve with chosen steps put together, below which their lengths differ too much."""


def estimate(fine: Result, coarse: Result, coarser: Coarser, trace: Trace) -> ErrorEstimate:
    """The error of a result, from that of a solve with steps twice as long.

    Args:
        fine: the result.
        coarse: that of the other solve.
        coarser: what the other solve was.
        trace: what the backward sweep of the result noticed.
    """
    found = richardson(fine, coarse, coarser.decay, coarser.largest_gap)
    doubts = list(found.doubts)
    if coarser.refinement is not None and coarse.stats.steps < FEWEST_STEPS:
        doubts.append(f"there are only {fine.stats.steps} steps, of different lengths")
    defects = interpolation_defects(trace, fine.value)
    if defects is not None and bool((defects > LARGEST_DEFECT).any()):
        doubts.append(
            f"the interpolated state misses the flow by {defects.max().item():.2f} of its way"
        )
    return replace(found, doubts=tuple(doubts), defects=defects)


def richardson(fine: Result, coarse: Result, decay: Decay, largest_gap: float) -> ErrorEstimate:
    """The error of a result, from another one whose error is larger by a factor.

    Args:
        fine: the result.
        coarse: the other one.
        decay: how the error falls from that to this.
        largest_gap: the relative change up to which it is as expected.
    """
    value = _gap(fine.value, coarse.value)
    params = _gap(fine.grads.params, coarse.grads.params)
    hparams = _gap(fine.grads.hparams, coarse.grads.hparams)
    doubts: list[str] = []
    gap = max(params, hparams)
    if gap > largest_gap:
        doubts.append(f"the gradient changes by {gap:.1e} when steps get twice as long")
    if not torch.equal(fine.status, coarse.status):
        doubts.append("other tasks fail when steps get twice as long")
    ahead, stats = decay.ahead(gap), coarse.stats
    return ErrorEstimate(
        value / ahead, params / ahead, hparams / ahead, gap, decay.order, tuple(doubts), stats
    )


def relative_change(result: Result, other: Result) -> float:
    """The difference of two gradients in units of the first, the larger of params and hparams."""
    return max(
        _gap(result.grads.params, other.grads.params),
        _gap(result.grads.hparams, other.grads.hparams),
    )


def interpolation_defects(trace: Trace, like: Tensor) -> Tensor | None:
    """The defect in each interval, the earliest first; None where nothing was interpolated."""
    if trace.exact or not trace.starts:
        return None
    defects = trace.read(like).defect.flip(0)
    return defects if bool((defects > 0).any()) else None


def no_estimate(order: int, doubt: str) -> ErrorEstimate:
    """What is known when there is nothing to compare with."""
    return ErrorEstimate(math.inf, math.inf, math.inf, math.inf, order, (doubt,), Stats())


def scaled(error: ErrorEstimate, factor: float) -> ErrorEstimate:
    """An error that is larger by a factor."""
    return replace(
        error, value=factor * error.value, params=factor * error.params,
        hparams=factor * error.hparams,
    )  # fmt: skip


def _gap(found: PyTree, other: PyTree) -> float:
    """The difference of all tensors of two trees, in units of the first; 0 if there are none."""
    pairs = zip(_tensors(found), _tensors(other), strict=True)
    parts = [(torch.linalg.vector_norm(a), torch.linalg.vector_norm(a - b)) for a, b in pairs]
    size = math.hypot(*(a.item() for a, _ in parts))
    gap = math.hypot(*(b.item() for _, b in parts))
    if gap == 0:
        return 0.0
    return gap / size if size > 0 else math.inf


def _tensors(value: PyTree) -> list[Tensor]:
    return [leaf.detach().double() for leaf in tree.leaves(value) if isinstance(leaf, Tensor)]
