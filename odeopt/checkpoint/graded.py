"""Checkpoints that are denser where the trajectory bends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Progress,
    Restore,
    Store,
    in_store,
    replay_segments,
)
from odeopt.checkpoint.store import Tier
from odeopt.registry import CHECKPOINTS
from odeopt.tools.arguments import check_integer


@final
@CHECKPOINTS.register("graded", example=lambda: Graded(4))
class Graded(CheckpointSchedule):
    r"""Keep n states, denser where the trajectory bends.

    Each interval holds the same share of $\tfrac12\int\lVert y''\rVert^{1/2}dt$ (normalised
    to 1) plus half the time: half of the nodes follow the curvature, half the clock. The shares
    are known only at the end, so the forward sweep is made twice, first to measure, then to store.
    When gradient evaluations matter more than memory, `Density` with more states is cheaper, and
    the accepted steps of `Adaptive` are graded already.

    Cost: up to N steps more, and at most n states, with two more while measuring.

    With tasks the nodes are common to all.

    Args:
        n: the number of kept states, the initial one included.
        store: where they are kept; `Device()` by default.

    Raises:
        InputError: if n is not a positive integer.

    References:
        de Boor 1973, "Good approximation by splines with variable knots" (equidistribution).
    """

    is_mesh = True
    needs_length = True
    watches = True

    def __init__(self, n: int, store: Tier | None = None) -> None:
        self.n = check_integer(n, "n")
        self.tiers = in_store(store)

    @override
    def coarser(self) -> Graded:
        return Graded((self.n + 1) // 2, self.tiers[0])

    @override
    def forward(self, n: int | None) -> ForwardStream:
        assert n is not None, "needs_length"
        monitor = Monitor((yield Store(0)))
        for index in range(n):
            monitor.observe((yield Advance(index, index + 1)))
        nodes = equidistribute(monitor.shares(), min(self.n, n))
        yield Restore(0)
        for start, stop in pairwise(nodes):
            yield Advance(start, stop)
            yield Store(stop)

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return replay_segments(kept, n)


def equidistribute(shares: Sequence[float], count: int) -> list[int]:
    """Where to put `count` nodes, the first at 0, so that the shares between them are alike."""
    before = [0.0, *accumulate(shares)]
    nodes: list[int] = []
    for position in range(count):
        target = before[-1] * position / count
        first = nodes[-1] + 1 if nodes else 0
        last = len(shares) - (count - position)
        nodes.append(min(max(_nearest(before, target), first), last))
    return nodes


def _nearest(ascending: Sequence[float], target: float) -> int:
    right = min(bisect_left(ascending, target), len(ascending) - 1)
    left = max(right - 1, 0)
    return left if target - ascending[left] < ascending[right] - target else right


class Monitor:
    r"""The curvature $\lVert y''\rVert^{1/2}$ of each step, by divided differences."""

    def __init__(self, start: Progress) -> None:
        self._recent = [start]
        self._bends: list[Tensor] = []
        self._durations: list[Tensor] = []

    def observe(self, progress: Progress) -> None:
        """Take the state at the end of the next step."""
        self._recent = [*self._recent[-2:], progress]
        self._durations.append(progress.t - self._recent[-2].t)
        if len(self._recent) == 3:
            self._bends.append(_curvature(*self._recent).sqrt())

    def shares(self) -> list[float]:
        """The share of each step, half by its curvature and half by its duration.

        Each task counts as much as another; one that diverges does not count.
        """
        durations = torch.stack(self._durations)
        bends = torch.stack(self._bends or [torch.zeros_like(durations[0])])
        bends = torch.cat([bends[:1], bends])[: len(durations)]
        curved = _normalised(bends.to(durations.dtype) * durations)
        share = 0.5 * curved + 0.5 * _normalised(durations)
        return share.reshape(len(durations), -1).mean(1).tolist()


def _normalised(parts: Tensor) -> Tensor:
    """Parts of shape [n] or [n, tasks] over their sum; even ones where it is 0 or not finite."""
    total = parts.sum(0)
    usable = torch.isfinite(total) & (total > 0)
    even = torch.full_like(parts, 1 / len(parts))
    return torch.where(usable, parts / total, even)


def _curvature(first: Progress, second: Progress, third: Progress) -> Tensor:
    """Up to a factor, since only shares of the whole are compared."""
    before, after = second.t - first.t, third.t - second.t
    bend = _slope(second, third, after) - _slope(first, second, before)
    return torch.linalg.vector_norm(bend, dim=-1) / _positive(before + after)


def _slope(start: Progress, stop: Progress, duration: Tensor) -> Tensor:
    return (stop.y - start.y) / _positive(duration)[..., None].to(start.y.dtype)


def _positive(duration: Tensor) -> Tensor:
    """Durations, with 1 in place of 0: a frozen task does not move, and so does not bend."""
    return torch.where(duration > 0, duration, torch.ones_like(duration))
