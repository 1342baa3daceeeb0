"""Checkpoints that are denser where the trajectory bends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from odeopt.checkpoint.base import (
    Action,
    Advance,
    CheckpointSchedule,
    ForwardStream,
    Free,
    Progress,
    Store,
    check_positive,
    replay_segments,
    run_through,
)
from odeopt.registry import CHECKPOINTS


@final
@CHECKPOINTS.register("graded", example=lambda: Graded(4))
class Graded(CheckpointSchedule):
    r"""Keep n states so that each interval holds the same share of $\int \lVert y''\rVert^{p} dt$.

    The nodes are found in one forward sweep and never more than n states are kept: each new state
    takes the slot of the node whose removal merges the two intervals with the smallest share.
    Three recent states are held beside, to take divided differences. With tasks, the nodes are
    common to all and the monitor is averaged over them. One synchronisation per step.

    Args:
        n: the number of kept states, the initial one included.
        exponent: p; larger values put more nodes where the trajectory bends.

    References:
        de Boor 1973, "Good approximation by splines with variable knots" (equidistribution).
    """

    is_mesh = True
    needs_length = False

    def __init__(self, n: int, exponent: float = 0.5) -> None:
        self.n = check_positive(n, "n")
        self.exponent = float(exponent)

    @override
    def forward(self, n: int | None) -> ForwardStream:
        monitor, nodes = Monitor(self.exponent), Nodes(self.n)
        total = 0.0
        for index in run_through(n):
            if index == 0:
                monitor.observe((yield Store(0)))
                nodes.add(0, 0.0)
            elif self.n > 1:
                if nodes.full:
                    yield Free(nodes.drop(total))
                yield Store(index)
                nodes.add(index, total)
            total += monitor.observe((yield Advance(index, index + 1)))

    @override
    def backward(self, n: int, kept: Sequence[int]) -> Iterator[Action]:
        return replay_segments(kept, n)


@dataclass
class Nodes:
    """At most `limit` nodes and the share of the monitor integral that lies before each."""

    limit: int
    indices: list[int] = field(default_factory=list[int])
    shares: list[float] = field(default_factory=list[float])

    def add(self, index: int, share: float) -> None:
        """Append a node."""
        self.indices.append(index)
        self.shares.append(share)

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return len(self.indices) >= self.limit

    def drop(self, end: float) -> int:
        """Drop and return the least useful node, never the first; `end` is the share so far."""
        ends = [*self.shares[2:], end]
        merged = [stop - start for start, stop in zip(self.shares[:-1], ends, strict=True)]
        position = 1 + min(range(len(merged)), key=merged.__getitem__)
        del self.shares[position]
        return self.indices.pop(position)


class Monitor:
    """The integral of ||y''||^p over one step, by divided differences."""

    def __init__(self, exponent: float) -> None:
        self._exponent = exponent
        self._recent: list[Progress] = []

    def observe(self, progress: Progress) -> float:
        """Take a new state and return the share of the step that led to it."""
        self._recent = [*self._recent[-2:], progress]
        if len(self._recent) < 3:
            return 0.0
        first, second, third = self._recent
        before, after = second.t - first.t, third.t - second.t
        bend = _slope(second, third, after) - _slope(first, second, before)
        curvature = torch.linalg.vector_norm(bend, dim=-1) / _positive(0.5 * (before + after))
        share = curvature.pow(self._exponent) * after
        return float(share.mean())


def _slope(start: Progress, stop: Progress, duration: Tensor) -> Tensor:
    return (stop.y - start.y) / _positive(duration)[..., None].to(start.y.dtype)


def _positive(duration: Tensor) -> Tensor:
    """Durations, with 1 in place of 0: a frozen task does not move, and so does not bend."""
    return torch.where(duration > 0, duration, torch.ones_like(duration))
